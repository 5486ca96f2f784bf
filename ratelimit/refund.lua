-- refund.lua: give back units of one subject, or end its leases.
--
-- KEYS[i]  state key of policy i, as in decide.lua; then one of reset.lua for each; then one for each token bucket
-- KEYS[n]  string  what was given back behind others in a bucket: " entered:units" for each, the latest 32
-- ARGV[1]  int     policies
-- ARGV[2]  int     when the units were taken, microseconds; '' for the latest units
-- ARGV[3…] per policy: algorithm, limit, window in microseconds, extra, tick in microseconds, shadow,
--          units to give back, mark, mark2, mark3; for leases mark is the lease
--          mark says when the units were taken: f, c start of the window, microseconds; l score of the
--          entry; b level just after, with mark2 the time of that, in ticks, and mark3 what had entered
--          by then; '' for the latest units, of b those that would drain next
-- Returns  1
-- Writes   KEYS[i]; never less than nothing used, never in a later window
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local floor, ceil, match, fmt = math.floor, math.ceil, string.match, string.format
local many = 1000
local exact = 9007199254740991
local lib = rawget(_G, 'struct') -- not every server has it
local taken = tonumber(ARGV[2])
local np = tonumber(ARGV[1])
local side = 2 * np
local a = 3
for i = 1, np do
  local key, al = KEYS[i], ARGV[a]
  local limit, w, sig, k = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), ARGV[a + 2], tonumber(ARGV[a + 4])
  local n, mark, mark2, mark3 = tonumber(ARGV[a + 6]), tonumber(ARGV[a + 7]), tonumber(ARGV[a + 8]), tonumber(ARGV[a + 9])
  local lease = ARGV[a + 7]
  a = a + 10
  if al == 'b' then side = side + 1 end
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
      if s == mark or not mark then
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
      elseif g ~= sig then
        fromCur = 0
      elseif mark == s then
        fromCur = n < cu and n or cu
      elseif mark == s - w then
        fromPrev = n
      end
      if fromPrev > pr then fromPrev = pr end
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
        l, entered = l * wt, entered and now
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
