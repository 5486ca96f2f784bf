-- refund.lua: give back units of one subject, or end its leases.
--
-- KEYS[i]  state key of policy i, as in decide.lua
-- ARGV[1]  int     policies
-- ARGV[2…] per policy: algorithm, limit, window in microseconds, extra, tick in microseconds, shadow,
--          units to give back, mark, mark2; for leases mark is the lease
--          mark says when the units were taken: f, c start of the window, microseconds; l score of the
--          entry; b level just after, with mark2 the time of that, in ticks; '' for the latest units
-- Returns  1
-- Writes   KEYS[i]; never less than nothing used, never in a later window
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local floor, ceil, match, fmt = math.floor, math.ceil, string.match, string.format
local many = 1000
local lib = rawget(_G, 'struct') -- not every server has it
local a = 2
for i = 1, tonumber(ARGV[1]) do
  local key, al = KEYS[i], ARGV[a]
  local limit, w, sig, k = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), ARGV[a + 2], tonumber(ARGV[a + 4])
  local n, mark, mark2 = tonumber(ARGV[a + 6]), tonumber(ARGV[a + 7]), tonumber(ARGV[a + 8])
  local lease = ARGV[a + 7]
  a = a + 9
  if n <= 0 then
    n = 0
  elseif al == 'f' then
    local v = redis.call('GET', key)
    local s, u, g
    if v then s, u, g = match(v, '^(%d+):(%d+):(%d+)$') end
    if s then
      s, u = tonumber(s), tonumber(u)
      if s == mark or not mark then
        if u <= n then
          redis.call('DEL', key)
        else
          redis.call('SET', key, fmt('%.0f:%.0f:%s', s, u - n, g), 'KEEPTTL')
        end
      end
    end
  elseif al == 'c' then
    local v = redis.call('GET', key)
    local s, pr, cu, g
    if v then s, pr, cu, g = match(v, '^(%d+):(%d+):(%d+):(%d+)$') end
    if s then
      s, pr, cu = tonumber(s), tonumber(pr), tonumber(cu)
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
    local v = redis.call('GET', key)
    local tag, l, s, g, gk
    if v and lib and #v == 41 and string.byte(v) == 66 then -- as bucket.lua writes it
      tag, l, s, g, gk = lib.unpack('<Bdddd', v)
    elseif v then
      l, s, g, gk = match(v, '^(%d+):(%d+):(%d+)x(%d+)$')
    end
    if l and tonumber(g) == w and tonumber(gk) == k then
      l, s = tonumber(l), floor(s / k)
      local wt, nt = w / k, floor(now / k)
      if nt > s then
        local el = nt - s
        s = nt
        if el >= ceil(l / limit) then l = 0 else l = l - el * limit end
      end
      -- First in, first out: what was taken at the mark has drained by now as far
      -- as the level of that time has.
      local back = n * wt
      if mark then
        local el = s - mark2
        if el < 0 then el = 0 end
        local rest = 0
        if el < ceil(mark / limit) then rest = mark - el * limit end
        if rest < back then back = rest end
      end
      if l <= back then
        redis.call('DEL', key)
      elseif back > 0 then
        redis.call('SET', key, fmt('%.0f:%.0f:%sx%.0f', l - back, s * k, sig, k), 'KEEPTTL')
      end
    end
  elseif al == 'l' then
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
