-- one.lua: decide.lua for the common case, in less time: one fixed or sliding window, calls of one cost.
--
-- KEYS     the states of all subjects, as in decide.lua; then the bans (string) of the first of them; then
--          the flag that ban.lua raises (string), unless these are all bans. Or the states alone, if
--          bans do not matter
-- KEYS[n]  string  fixed window, sliding window, ban or flag
-- ARGV[1]  string  algorithm: f or c
-- ARGV[2]  int     limit; ARGV[3] window in microseconds; ARGV[4] extra; ARGV[5] tick in microseconds
-- ARGV[6]  int     the cost of each call, as in decide.lua
-- ARGV[7]  int     subjects
-- ARGV[8…] int     per subject: calls; left out if all have one
-- Returns  {now, per subject: -1, minus the end of a ban, or the state before the calls}, as decide.lua;
--          {now, -2} if the flag is there: nothing was decided, all bans must be given
-- Writes   the states that admitted something, as decide.lua
-- Source   as decide.lua
local call = redis.call
local exact = 9007199254740991
local floor, ceil, match, fmt = math.floor, math.ceil, string.match, string.format
local t = call('TIME')
local now = t[1] * 1000000 + t[2]
local al, limit, sig, k = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[5])
local w, extra, cost = tonumber(sig), tonumber(ARGV[4]), tonumber(ARGV[6])
-- %d takes half of the time of %.0f, which is the most of a short script's. It writes a C long:
-- where that has 32 bits %.0f is left.
local form = al == 'f' and '%d:%d:%s' or '%d:%d:%d:%s'
if fmt('%d', exact) ~= '9007199254740991' then form = string.gsub(form, '%%d', '%%.0f') end
local subjects = tonumber(ARGV[7])
local vals = call('MGET', unpack(KEYS))
if #KEYS > subjects and #KEYS < 2 * subjects and vals[#KEYS] then return { now, -2 } end
local out = { now }
local o = 1
for at = 1, subjects do
  local key, v, x, y, z, old, keep, first = KEYS[at], vals[at], now, 0, 0, false, false, o + 1
  local ban, avail, bad = 0, 0, false
  if vals[subjects + at] then
    ban = tonumber(vals[subjects + at])
    if not ban then ban, bad = 0, true end
  end
  if ban > now then
    x = -ban
  elseif al == 'f' then
    if extra ~= -1 then x = now - (now - extra) % w end
    if v then
      --> fixedwindow.lua
      if s then
        if extra ~= -1 then s = s - (s - extra) % w end
        if s > now then
          if s - now <= w then x, y = s, u end
        elseif extra == -1 then
          if now - s < w then x, y = s, u end
        elseif s >= x then
          y = u
        end
        keep = y > 0 and g == sig
      else
        bad = true
      end
    end
    avail = limit - y
  else
    local tick, ww = k, w
    x = now - now % ww
    if v then
      --> slidingwindow.lua
      if s then
        if g ~= sig then
          ww = tonumber(g)
          old = ww
          x = now - now % ww
        end
        if s == x or s == x + ww then
          x, y, z = s, pr, cu
        elseif s == x - ww then
          y = cu
        end
        keep = s == x and not old
        local most = y > z and y or z
        if limit > most then most = limit end
        while most * floor(ww / tick) > 4503599627370496 do tick = tick * 10 end
      else
        bad = true
      end
    end
    local ticks, e = floor(ww / tick), floor((now - x) / tick)
    if e < 0 then e = 0 elseif e > ticks then e = ticks end
    avail = floor(((limit - z) * ticks - y * (ticks - e)) / ticks)
    if old and y + z == 0 then
      old = false
      x = now - now % w
    end
  end
  if bad then x = -1 end
  o = o + 1
  out[o] = x
  if x > 0 then
    o = o + 1
    out[o] = y
    if al == 'c' then
      o = o + 1
      if old then
        out[o] = -1 - z
        o = o + 1
        out[o] = old
      else
        out[o] = z
      end
    end
    local n = 0
    if avail > 0 then
      if cost > 0 then
        n = floor(avail / cost)
        local calls = tonumber(ARGV[7 + at] or 1)
        if n > calls then n = calls end
        n = n * cost
      else
        n = -cost
        if n > avail then n = avail end
      end
    end
    if n > 0 then
      local set, life
      if al == 'f' then
        set, life = fmt(form, x, y + n, sig), ceil((x + w - now) / 1000) + 1000
      else
        if old then
          local from = x > now and x or now
          x, y, z = from - from % w, 0, limit - avail
        end
        set, life = fmt(form, x, y, z + n, sig), ceil((x + 2 * w - now) / 1000) + 1000
      end
      if keep then
        call('SET', key, set, 'KEEPTTL')
      elseif v then
        call('SET', key, set, 'PX', life)
      else
        -- MGET says nothing of a key of another type, and NX does not replace it.
        bad = not call('SET', key, set, 'PX', life, 'NX')
      end
    elseif not v then
      bad = redis.pcall('GET', key)
    end
    if bad then
      for i = first + 1, o do out[i] = nil end
      out[first], o = -1, first
    end
  end
end
return out
