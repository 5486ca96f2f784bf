-- decide.lua: decide merged calls on one or several subjects under a set of policies, all or nothing.
--
-- KEYS     for each subject: its ban (string), then one state key per policy, in the order of the policies
-- KEYS[n]  string  ban: until, microseconds since the Unix epoch
-- KEYS[n]  string  fixed window "start:used:window", microseconds
-- KEYS[n]  string  token bucket, as tokenbucket.lua says
-- KEYS[n]  string  sliding window "start:previous:current:window", microseconds
-- KEYS[n]  zset    sliding log, score = microseconds, member = "units so far:units of this entry"
-- KEYS[n]  zset    concurrency, score = end of the lease in microseconds, member = lease
-- ARGV[1]  int     policies, np
-- ARGV[2]  0|1     each subject sends its phase
-- ARGV[3]  0|1     each run sends a lease id
-- ARGV[4]  int     the cost of all calls, each subject having one; '' if runs follow
-- ARGV[5…] per policy: algorithm (f, b, c, l, n), limit, window in microseconds,
--          extra (f: offset, -1 anchored, -2 phased; b: burst), tick in microseconds, shadow 0|1
-- then     per subject: phase if ARGV[2]; if ARGV[4] is '' number of runs, per run: cost, calls; lease
--          id of each run if ARGV[3]
--          cost > 0 is charged whole, cost < 0 is up to -cost for one call, 0 is a peek
-- Returns  {now, per subject: -1 for data that is not a limiter's, minus the end of a ban, or per policy two numbers (f) or three (b, c, l,
--          n) that describe its state before the calls, then the times at which logs and leases admit
--          what they denied}
-- Writes   the state keys of policies that admitted something, with a TTL that outlives what they hold
-- Source   sliding window: Cloudflare, "Counting things", 2017; token bucket: GCRA, ITU-T I.371
local call = redis.call
local t = call('TIME')
local now = t[1] * 1000000 + t[2]
local np = tonumber(ARGV[1])
local phased, leased = ARGV[2] == '1', ARGV[3] == '1'
local floor, ceil, match, fmt = math.floor, math.ceil, string.match, string.format
local exact = 9007199254740991
local half = 4503599627370496
-- Milliseconds by which a key outlives what it holds, so that none expires while a script is at it.
local spare = 1000
local algo, limit, win, sig, extra, tick, shadow = {}, {}, {}, {}, {}, {}, {}
local P, avail, total = {}, {}, {}
local shadows = false
local one = tonumber(ARGV[4])
local a = 5
for i = 1, np do
  P[i] = {}
  algo[i], limit[i], sig[i] = ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2]
  win[i], extra[i], tick[i] = tonumber(sig[i]), tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  shadow[i] = ARGV[a + 5] == '1'
  shadows = shadows or shadow[i]
  a = a + 6
end
local lib = rawget(_G, 'struct') -- not every server has it
local most = 1000000000000000 -- Redis refuses a TTL that has more digits than a number shows
-- when returns the time at which a log or leases, with what was taken so far, have given back n units.
local function when(at, i, n)
  local key, p = KEYS[at], P[i]
  if algo[i] == 'n' then
    -- among the leases and those taken now, which may end before others
    local ends, sooner = now + win[i], p.x
    if p.z > ends then sooner = call('ZCOUNT', key, fmt('(%.0f', now), ends) end
    if n > sooner then
      n = n - total[i]
      if n <= sooner then return ends end
    end
    return tonumber(call('ZRANGEBYSCORE', key, fmt('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', n - 1, 1)[2])
  end
  -- the first entry at whose end the units up to it are free
  local target = p.cum - p.x + n
  if target == p.target then return p.when end
  p.target = target
  if target > p.cum then
    p.when = p.t + win[i]
    return p.when
  end
  local lo = call('ZCOUNT', key, '-inf', now - win[i])
  local hi = call('ZCARD', key) - 1
  while lo < hi do
    local mid = floor((lo + hi) / 2)
    local e = call('ZRANGE', key, mid, mid)
    if tonumber(match(e[1], '^(%d+)') or 0) >= target then hi = mid else lo = mid + 1 end
  end
  p.when = call('ZRANGE', key, lo, lo, 'WITHSCORES')[2] + win[i]
  return p.when
end
local vals = call('MGET', unpack(KEYS))
local out = { now }
local o = 1
local at = 0
while at < #KEYS do
  local phase = 0
  if phased then phase = tonumber(ARGV[a]) a = a + 1 end
  local runs = 1
  if not one then runs = tonumber(ARGV[a]) a = a + 1 end
  -- no is what the subject gets instead of a decision.
  local first, no = o + 1, false
  if vals[at + 1] and KEYS[at + 1] ~= KEYS[at + 2] then
    local ban = tonumber(vals[at + 1])
    if not ban then no = -1 elseif ban > now then no = -ban end
  end
  if not no then
    for i = 1, np do
      local key, v, w, al, p = KEYS[at + 1 + i], vals[at + 1 + i], win[i], algo[i], P[i]
      local x, y, z = 0, 0, 0
      -- MGET says nothing of a key of another type.
      if not v and al ~= 'l' and al ~= 'n' and redis.pcall('GET', key) then
        no = -1
        break
      end
      if al == 'f' then
        local off, keep = extra[i], false
        x = now
        if off ~= -1 then
          if off == -2 then off = phase % w end
          x = now - (now - off) % w
        end
        if v then
          --> fixedwindow.lua
          if s then
            if extra[i] ~= -1 then s = s - (s - off) % w end
            if s > now then
              if s - now <= w then x, y = s, u end
            elseif extra[i] == -1 then
              if now - s < w then x, y = s, u end
            elseif s >= x then
              y = u
            end
            keep = y > 0 and g == sig[i]
          else
            no = -1
            break
          end
        end
        p.keep = keep
        avail[i] = limit[i] - y
      elseif al == 'b' then
        local k = tick[i]
        local wt, nt = w / k, floor(now / k)
        local full = extra[i] * wt
        x, y, z = nt, 0, now
        if v then
          --> tokenbucket.lua
          if l then
            s, z = floor(s / k), entered or now
            if g ~= w or gk ~= k then
              l = ceil(l / (g / gk))
              local whole = floor(exact / wt)
              if l > whole then l = whole end
              l, z = l * wt, z + 1000000000000 -- what was reserved before is not given back
            end
            local el = nt - s
            if el < 0 then
              if -el <= ceil(full / limit[i]) then x, y = s, l else z = now end
            elseif el < ceil(l / limit[i]) then
              y = l - el * limit[i]
            end
            if y == 0 then x = nt end
          else
            no = -1
            break
          end
        end
        avail[i] = floor((full - y) / wt)
      elseif al == 'c' then
        -- After a change of the window the old one counts on until the next write.
        local k, ww = tick[i], w
        p.old, p.keep = false, false
        x = now - now % ww
        if v then
          --> slidingwindow.lua
          if s then
            if g ~= sig[i] then
              ww = tonumber(g)
              p.old = ww
              x = now - now % ww
            end
            if s == x or s == x + ww then
              x, y, z = s, pr, cu
            elseif s == x - ww then
              y = cu
            end
            p.keep = s == x and not p.old
            local most = y > z and y or z
            if limit[i] > most then most = limit[i] end
            while most * floor(ww / k) > half do k = k * 10 end
          else
            no = -1
            break
          end
        end
        local wt, e = floor(ww / k), floor((now - x) / k)
        if e < 0 then e = 0 elseif e > wt then e = wt end
        avail[i] = floor(((limit[i] - z) * wt - y * (wt - e)) / wt)
        if p.old and y + z == 0 then
          p.old = false
          x = now - now % w
        end
      elseif al == 'l' then
        -- x units used, y time of the oldest live entry, z time of the newest
        local last = redis.pcall('ZRANGE', key, -1, -1, 'WITHSCORES')
        p.cum, p.t, p.drop, p.ended, p.target = 0, now, false, false, nil
        if last.err then
          no = -1
          break
        end
        if last[1] then
          z = tonumber(last[2])
          if z - now > w then
            p.drop = true
            z = 0
          else
            p.cum = tonumber(match(last[1], '^(%d+):%d+$') or -1)
            if p.cum < 0 then
              no = -1
              break
            end
            -- Scores differ, since members of one score are in the order of their text.
            if z >= now then p.t = z + 1 end
            if z <= now - w then
              p.ended = true
            else
              local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
              y = tonumber(first[2])
              p.ended = y <= now - w
              if p.ended then
                first = call('ZRANGEBYSCORE', key, fmt('(%.0f', now - w), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
                y = tonumber(first[2])
              end
              local c, k = match(first[1], '^(%d+):(%d+)$')
              if not c then
                no = -1
                break
              end
              x = p.cum - c + k
            end
          end
        end
        avail[i] = limit[i] - x
      else
        -- x units held, y end of the lease that ends first, z end of the one that ends last
        p.drop, p.ids = false, nil
        local last = redis.pcall('ZRANGE', key, -1, -1, 'WITHSCORES')
        if last.err then
          no = -1
          break
        end
        if last[1] then
          z = tonumber(last[2])
          if z - now > 2 * w then
            p.drop = true
            z = 0
          elseif z <= now then
            z = 0
          else
            local low = fmt('(%.0f', now)
            x = call('ZCOUNT', key, low, '+inf')
            y = tonumber(call('ZRANGEBYSCORE', key, low, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2])
          end
        end
        avail[i] = limit[i] - x
      end
      p.x, p.y, p.z = x, y, z
      total[i] = 0
      out[o + 1], out[o + 2] = x, y
      o = o + 2
      if al == 'c' and p.old then
        out[o + 1], out[o + 2] = -1 - z, p.old
        o = o + 2
      elseif al ~= 'f' then
        o = o + 1
        out[o] = z
      end
    end
  end
  if no then
    for i = first + 1, o do out[i] = nil end
    out[first], o = no, first
    a = a + runs * ((one and 0 or 2) + (leased and 1 or 0))
  else
    -- In arrival order: the same as the calls one after another at this instant.
    for r = 1, runs do
      local c, k, id = one, 1, nil
      if not one then
        c, k = tonumber(ARGV[a]), tonumber(ARGV[a + 1])
        a = a + 2
      end
      if leased then id = ARGV[a] a = a + 1 end
      local room
      for i = 1, np do
        if not shadow[i] then
          local left = avail[i] - total[i]
          if not room or left < room then room = left end
        end
      end
      if not room then room = exact elseif room < 0 then room = 0 end
      local n, g, need = 0, 0, 1
      if c > 0 then
        need = c
        n = floor(room / c)
        if n > k then n = k end
        g = n * c
      elseif c < 0 then
        g = room < -c and room or -c
      end
      for i = 1, np do
        local took, all = g, n == k
        if shadow[i] then
          local left = avail[i] - total[i]
          if left < 0 then left = 0 end
          if c > 0 then
            local m = floor(left / c)
            if m < n then took, all = m * c, false end
          elseif left < took then
            took = left
          end
        end
        total[i] = total[i] + took
        if algo[i] == 'n' and took > 0 then
          local ids = P[i].ids or {}
          P[i].ids = ids
          ids[#ids + 1] = id
          for u = 2, took do ids[#ids + 1] = fmt('%s:%.0f', id, u) end
        end
        local left = avail[i] - total[i]
        if algo[i] == 'l' or algo[i] == 'n' then
          if need > left and need <= limit[i] and not (c > 0 and all) then
            o = o + 1
            out[o] = when(at + 1 + i, i, need - left)
          end
          if left < 0 then
            o = o + 1
            out[o] = when(at + 1 + i, i, 1 - left)
          end
        end
      end
    end
    for i = 1, np do
      local n = total[i]
      if n > 0 then
        local key, p, w, al = KEYS[at + 1 + i], P[i], win[i], algo[i]
        if al == 'f' then
          if p.keep then
            call('SET', key, fmt('%.0f:%.0f:%s', p.x, p.y + n, sig[i]), 'KEEPTTL')
          else
            call('SET', key, fmt('%.0f:%.0f:%s', p.x, p.y + n, sig[i]), 'PX', ceil((p.x + w - now) / 1000) + spare)
          end
        elseif al == 'b' then
          local k = tick[i]
          local l = p.y + n * (w / k)
          local ends, inside = (p.x + ceil(l / limit[i])) * k, p.z + n
          if inside > exact then inside = now + n end
          local life = ceil((ends - now) / 1000) + spare
          if life > most then life = most end
          local state
          if lib then
            state = lib.pack('<Bddddd', 66 + #fmt('%.0f', k), l, p.x * k, w, now + (life - 100) * 1000, inside)
          else
            state = fmt('%.0f:%.0f:%sx%.0f:%.0f', l, p.x * k, sig[i], k, inside)
          end
          call('SET', key, state, 'PX', life)
        elseif al == 'c' then
          if p.old then
            local from = p.x > now and p.x or now
            p.x, p.y, p.z = from - from % w, 0, limit[i] - avail[i]
          end
          local state = fmt('%.0f:%.0f:%.0f:%s', p.x, p.y, p.z + n, sig[i])
          if p.keep then
            call('SET', key, state, 'KEEPTTL')
          else
            call('SET', key, state, 'PX', ceil((p.x + 2 * w - now) / 1000) + spare)
          end
        elseif al == 'l' then
          if p.drop then
            call('DEL', key)
          elseif p.ended then
            -- A bounded share of what has ended, so that no call pays for all.
            local ended = call('ZCOUNT', key, '-inf', now - w)
            if ended > 0 then call('ZREMRANGEBYRANK', key, 0, ended > 100 and 99 or ended - 1) end
          end
          call('ZADD', key, p.t, fmt('%.0f:%.0f', p.cum + n, n))
          call('PEXPIRE', key, ceil((p.t + w - now) / 1000) + spare)
        else
          if p.drop then call('DEL', key) else call('ZREMRANGEBYSCORE', key, '-inf', now) end
          local ends, ids = now + w, p.ids
          local add = {}
          for u = 1, #ids do
            add[#add + 1] = ends
            add[#add + 1] = ids[u]
            if #add == 1000 or u == #ids then
              call('ZADD', key, unpack(add))
              add = {}
            end
          end
          if p.z > ends then ends = p.z end
          call('PEXPIRE', key, ceil((ends - now) / 1000) + spare)
        end
      end
    end
  end
  at = at + 1 + np
end
return out
