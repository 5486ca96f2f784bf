-- refund.lua: give back units of one subject, or end its leases.
--
-- KEYS[i]  state key of policy i, as in decide.lua; then one of reset.lua for each; then one for each of f, c, b
-- KEYS[n]  string  what was given back behind others in a bucket: " entered:units" for each, the latest 32
-- KEYS[n]  string  to how few units of a window the latest were given back: " start:time:units" for each, 32 at most
-- ARGV[1]  int     policies
-- ARGV[2]  int     when the units were taken, microseconds; '' for the latest units
-- ARGV[3…] per policy: algorithm, limit, window in microseconds, extra, tick in microseconds, shadow,
--          units to give back, mark, mark2, mark3; for leases mark is the lease
--          mark says when the units were taken: f, c start of the window, microseconds; l score of the
--          entry; b level just after, with mark2 the time of that, in ticks, and mark3 what had entered
--          by then; '' for the latest units, of b those that would drain next. For f and c mark2 is what
--          the window held just after, mark3 what the call took of that
-- Returns  1
-- Writes   KEYS[i]; never less than nothing used, never in a later window
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local floor, ceil, match, fmt = math.floor, math.ceil, string.match, string.format
local many = 1000
local exact = 9007199254740991
local lib = rawget(_G, 'struct') -- not every server has it
local taken = tonumber(ARGV[2])
-- left returns how many of the n units that were the last of top, in a window that began at start, were not
-- given back with the latest since.
local function left(at, start, top, n)
  local rest = n
  for s, when, low in string.gmatch(KEYS[at] and redis.call('GET', KEYS[at]) or '', ' (%d+):(%d+):(%d+)') do
    if tonumber(s) == start and tonumber(when) >= taken and n - top + low < rest then rest = n - top + low end
  end
  return rest > 0 and rest or 0
end
-- lower notes that of the window that began at start so few units are left; before is the start of the one before.
local function lower(at, start, low, before, life)
  if not KEYS[at] then return end
  local keep, n = {}, 0
  for s, when, u in string.gmatch(redis.call('GET', KEYS[at]) or '', ' (%d+):(%d+):(%d+)') do
    -- What is not lower says no more than the new one.
    if tonumber(s) == before or tonumber(s) == start and tonumber(u) < low then
      n = n + 1
      keep[n] = { s, when, u }
    end
  end
  if n >= 32 then -- the first two become one: some may get back less than is left
    if keep[1][1] == keep[2][1] then keep[2][3] = keep[1][3] end
    table.remove(keep, 1)
  end
  local v = ''
  for _, e in ipairs(keep) do v = fmt('%s %s:%s:%s', v, e[1], e[2], e[3]) end
  redis.call('SET', KEYS[at], fmt('%s %.0f:%.0f:%.0f', v, start, now, low), 'PX', life > 1000 and ceil(life) or 1000)
end
local np = tonumber(ARGV[1])
local side = 2 * np
local a = 3
for i = 1, np do
  local key, al = KEYS[i], ARGV[a]
  local limit, w, sig, k = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), ARGV[a + 2], tonumber(ARGV[a + 4])
  local n, mark, mark2, mark3 = tonumber(ARGV[a + 6]), tonumber(ARGV[a + 7]), tonumber(ARGV[a + 8]), tonumber(ARGV[a + 9])
  local lease = ARGV[a + 7]
  a = a + 10
  if al == 'b' or al == 'f' or al == 'c' then side = side + 1 end
  if taken and al ~= 'n' and KEYS[np + i] then
    local forgotten = tonumber(redis.call('GET', KEYS[np + i]) or '')
    if forgotten and forgotten >= taken then n = 0 end
  end
  if n <= 0 then
    n = 0
  elseif al == 'f' then
    local v = redis.call('GET', key) or ''
    --> fixedwindow.lua
    if s then
      if s == mark then
        local rest = left(side, s, mark2, mark3)
        if rest < n then n = rest end
      elseif not mark then
        lower(side, s, u > n and u - n or 0, s, (s + tonumber(g) - now) / 1000 + 1000)
      end
      if n > 0 and (s == mark or not mark) then
        if u <= n then
          redis.call('DEL', key)
        else
          redis.call('SET', key, fmt('%.0f:%.0f:%s', s, u - n, g), 'KEEPTTL')
        end
      end
    end
  elseif al == 'c' then
    local v = redis.call('GET', key) or ''
    --> slidingwindow.lua
    if s then
      local fromCur, fromPrev = 0, 0
      if not mark then
        fromCur = n < cu and n or cu
        fromPrev = n - fromCur
      elseif g == sig and (mark == s or mark == s - w) then
        local rest = left(side, mark, mark2, mark3)
        if rest < n then n = rest end
        if mark == s then fromCur = n < cu and n or cu else fromPrev = n end
      end
      if fromPrev > pr then fromPrev = pr end
      if not mark then
        local ww = tonumber(g)
        local life = (s + 2 * ww - now) / 1000 + 1000
        if fromPrev > 0 then lower(side, s - ww, pr - fromPrev, s, life) end
        lower(side, s, cu - fromCur, s - ww, life)
      end
      if fromCur + fromPrev > 0 then
        cu, pr = cu - fromCur, pr - fromPrev
        if cu + pr == 0 then
          redis.call('DEL', key)
        else
          redis.call('SET', key, fmt('%.0f:%.0f:%.0f:%s', s, pr, cu, g), 'KEEPTTL')
        end
      end
    end
  elseif al == 'b' then
    local v = redis.call('GET', key) or '?'
    --> tokenbucket.lua
    if l and (not mark or g == w and gk == k) then
      s = floor(s / k)
      local wt, nt = w / k, floor(now / k)
      if g ~= w or gk ~= k then -- as in decide.lua
        l = ceil(l / (g / gk))
        local whole = floor(exact / wt)
        if l > whole then l = whole end
        l, entered = l * wt, entered and entered + 1000000000000
        if entered and entered > exact then entered = now end
      end
      if nt > s then
        local el = nt - s
        s = nt
        if el >= ceil(l / limit) then l = 0 else l = l - el * limit end
      end
      local back = n * wt
      if mark then
        -- First in, first out. What is in the bucket is at most what entered later and was
        -- not given back, and then this. If what was given back is forgotten, less is now.
        local holes, later = KEYS[side] and redis.call('GET', KEYS[side]) or '', 0
        if entered then later = entered - mark3 end
        for p, u in string.gmatch(holes, ' (%d+):(%d+)') do
          p = tonumber(p)
          if p > mark3 and entered and p <= entered then later = later - u end
        end
        -- A queue whose time is before the mark is another one.
        local el, rest = s - mark2, 0
        if el >= 0 and el < ceil(mark / limit) then rest = mark - el * limit end
        if rest < back then back = rest end
        rest = 0
        if entered and mark3 <= entered then rest = l - later * wt end
        if rest < back then back = rest end
        local units = floor(back / wt)
        if mark3 == entered then
          if units > 0 then entered = entered - units end
        elseif units > 0 and KEYS[side] then
          holes = fmt('%s %.0f:%.0f', holes, mark3, units)
          local _, listed = string.gsub(holes, ' ', '')
          if listed > 32 then holes = string.gsub(holes, '^ [^ ]*', '') end
          local life = ceil(l / limit * k / 1000)
          if life > 1000000000000000 then life = 1000000000000000 end
          redis.call('SET', KEYS[side], holes, 'PX', life)
        end
      end
      if back > l then back = l end
      if back > 0 then
        local state
        if lib and entered then
          state = lib.pack('<Bddddd', 66 + #fmt('%.0f', k), l - back, s * k, w, lives, entered)
        else
          state = fmt('%.0f:%.0f:%sx%.0f', l - back, s * k, sig, k)
          if entered then state = fmt('%s:%.0f', state, entered) end
        end
        redis.call('SET', key, state, 'KEEPTTL')
      end
    end
  elseif al == 'l' then
    -- Taking out the last entry would end the key, and with it its TTL.
    if redis.call('ZCARD', key) > 0 then redis.call('ZADD', key, 0, 'held') end
    if not mark then
      -- the latest units: shorten from the end
      for _ = 1, many do
        local e = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
        if not e[1] or tonumber(e[2]) <= now - w then break end
        local c, u = match(e[1], '^(%d+):(%d+)$')
        redis.call('ZREM', key, e[1])
        if tonumber(u) > n then
          redis.call('ZADD', key, e[2], fmt('%.0f:%.0f', c - n, u - n))
          break
        end
        n = n - u
        if n == 0 then break end
      end
    elseif mark > now - w then
      local at = fmt('%.0f', mark)
      local first = redis.call('ZCOUNT', key, '-inf', '(' .. at)
      local after = redis.call('ZCARD', key) - first
      if redis.call('ZCOUNT', key, at, at) == 0 then
        n = 0
      elseif after <= many then
        -- take them out of their entry, and move the later ones down
        local es = redis.call('ZRANGE', key, first, -1, 'WITHSCORES')
        local gone, new = {}, {}
        local down = 0
        for j = 1, #es, 2 do
          local c, u = match(es[j], '^(%d+):(%d+)$')
          c, u = tonumber(c), tonumber(u)
          if tonumber(es[j + 1]) == mark and n > 0 then
            local d = u < n and u or n
            n, down, u = n - d, down + d, u - d
          end
          gone[#gone + 1] = es[j]
          if u > 0 then
            new[#new + 1] = es[j + 1]
            new[#new + 1] = fmt('%.0f:%.0f', c - down, u)
          end
        end
        redis.call('ZREM', key, unpack(gone))
        if #new > 0 then redis.call('ZADD', key, unpack(new)) end
      else
        -- too many came later: give back the oldest units instead, which are
        -- never worth more
        local have = 0
        for _, e in ipairs(redis.call('ZRANGEBYSCORE', key, at, at, 'LIMIT', 0, many)) do
          have = have + tonumber(match(e, ':(%d+)$'))
        end
        if n > have then n = have end
        local es = redis.call('ZRANGEBYSCORE', key, fmt('(%.0f', now - w), '+inf', 'WITHSCORES', 'LIMIT', 0, many)
        for j = 1, #es, 2 do
          local c, u = match(es[j], '^(%d+):(%d+)$')
          redis.call('ZREM', key, es[j])
          if tonumber(u) > n then
            redis.call('ZADD', key, es[j + 1], fmt('%.0f:%.0f', c, u - n))
            break
          end
          n = n - u
          if n == 0 then break end
        end
      end
    end
    redis.call('ZREM', key, 'held')
  else
    local ids = { lease }
    for u = 2, n do
      ids[#ids + 1] = fmt('%s:%.0f', lease, u)
      if #ids == many then
        redis.call('ZREM', key, unpack(ids))
        ids = {}
      end
    end
    if #ids > 0 then redis.call('ZREM', key, unpack(ids)) end
  end
end
return 1
