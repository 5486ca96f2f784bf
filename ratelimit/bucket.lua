-- bucket.lua: decide.lua for one token bucket and calls of one cost, in a third of the time.
--
-- KEYS     the states of all subjects, as in decide.lua; then the bans (string) of the first of them; then
--          the flag that ban.lua raises (string), unless these are all bans. Or the states alone, if
--          bans do not matter
-- KEYS[n]  string  token bucket, ban or flag
-- ARGV[1]  int     limit; ARGV[2] window in microseconds; ARGV[3] burst; ARGV[4] tick in microseconds
-- ARGV[5]  int     the cost of each call, as in decide.lua
-- ARGV[6]  int     subjects
-- ARGV[7…] int     per subject: calls; left out if all have one
-- Returns  {now, per subject: -1, minus the end of a ban, or the state before the calls}, as decide.lua;
--          {now, -2} if the flag is there: nothing was decided, all bans must be given
-- Writes   the states that admitted something, as tokenbucket.lua says
-- Source   as decide.lua
local call = redis.call
local floor, ceil, max = math.floor, math.ceil, math.max
local t = call('TIME')
local now = t[1] * 1000000 + t[2]
local limit, w, burst, k, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local wt, nt = w / k, floor(now / k)
local full = burst * wt
local exact = 9007199254740991
-- Not every server has struct; without it the state is text.
local lib = rawget(_G, 'struct')
local shape, pack, tag = '<Bddddd', lib and lib.pack, 66 + #string.format('%.0f', k)
-- Milliseconds by which a key outlives what it holds: setting a string together with a TTL takes three
-- times as long as leaving the TTL as it is, and this is how long that can be done.
local spare = max(1000, floor(burst * (w / limit) / 16000))
local most = 1000000000000000 -- Redis refuses a TTL that has more digits than a number shows
local subjects = tonumber(ARGV[6])
local different = #ARGV > 6 -- numbers of calls
local vals = call('MGET', unpack(KEYS))
if #KEYS > subjects and #KEYS < 2 * subjects and vals[#KEYS] then return { now, -2 } end
local out, o = { now }, 1
for at = 1, subjects do
  local key, v, ban = KEYS[at], vals[at], vals[subjects + at]
  local x, y, till, into, no = nt, 0, 0, now, false
  if ban then
    ban = tonumber(ban)
    if not ban then no = -1 elseif ban > now then no = -ban end
  end
  if v and not no then
    --> tokenbucket.lua
    if l then
      till, into = lives, entered or now
      if k > 1 then s = floor(s / k) end
      if g ~= w or gk ~= k then
        l = ceil(l / (g / gk))
        local whole = floor(exact / wt)
        if l > whole then l = whole end
        l, into = l * wt, into + 1000000000000 -- what was reserved before is not given back
      end
      local el = nt - s
      if el < 0 then
        if -el <= ceil(full / limit) then x, y = s, l else into = now end
      else
        l = l - el * limit
        if l > 0 then y = l end
      end
      if y == 0 then x = nt end
    else
      no = -1
    end
  end
  if not no then
    local n, free = 0, full - y
    if cost > 0 then
      n = different and cost * ARGV[6 + at] or cost
      if n * wt > free then
        n = floor(floor(free / wt) / cost) * cost
        if n < 0 then n = 0 end
      end
    elseif cost < 0 then
      n = -cost
      if n * wt > free then n = max(floor(free / wt), 0) end
    end
    if n > 0 then
      local l, since = y + n * wt, x * k
      local ends = (x + l / limit + 1) * k
      local inside = into + n
      if inside > exact then inside = now + n end
      if till > ends and pack then
        call('SET', key, pack(shape, tag, l, since, w, till, inside), 'KEEPTTL')
      else
        local life = ceil((ends - now) / 1000) + spare
        if life > most then life = most end
        local state
        if pack then
          -- less than the TTL, by more than the server's clocks differ
          state = pack(shape, tag, l, since, w, now + (life - 100) * 1000, inside)
        else
          state = string.format('%.0f:%.0f:%sx%.0f:%.0f', l, since, ARGV[2], k, inside)
        end
        if v then
          call('SET', key, state, 'PX', life)
        elseif not call('SET', key, state, 'PX', life, 'NX') then
          no = -1 -- MGET says nothing of a key of another type, and NX does not replace it
        end
      end
    elseif not v and redis.pcall('GET', key) then
      no = -1
    end
  end
  if no then
    o = o + 1
    out[o] = no
  else
    out[o + 1], out[o + 2], out[o + 3] = x, y, into
    o = o + 3
  end
end
return out
