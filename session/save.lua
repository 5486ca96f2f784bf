-- save.lua: create, change, prolong, rename or divide one session, atomically.
--
-- A session that is gone stays gone: every mode but create needs the field m of
-- an existing session. A session that gets a new id leaves its next one at the old key
-- for a while, in the field n. All modes but a may be repeated with the same outcome.
--
-- KEYS[1]  hash    the session; in the modes r and d under its new key
-- KEYS[2]  hash    in mode r: the session under its old key; in mode d: the successor of
--                  a superseded session; same slot
-- ARGV[1]  string  c create, u update, r regenerate, a adopt (create unless there),
--                  d divide (create while KEYS[2] is there)
-- ARGV[2]  int     idle time of sessions without a MaxAge of their own, milliseconds, > 0
-- ARGV[3]  int     longest absolute lifetime, milliseconds, > 0
-- ARGV[4]  string  the session's own MaxAge, seconds; 0 the store's; -1 none; keep: as stored
-- ARGV[5]  string  1: the session's own MaxAge raises the longest lifetime; else ''
-- ARGV[6]  string  '' the user stays; =user it has to be this one; >user it will be this
--                  one, and the absolute lifetime starts now if it was another before and
--                  the mode is r or d
-- ARGV[7]  int     number of fields to set, n
-- ARGV[8]  int     number of fields that must still be as expected, e
-- ARGV[9]  int     number of fields to replace that are as expected, k
-- ARGV[10] string  what the field e must be, '' absent, unless it is what is set; *: any
-- ARGV[11] string  what the field e is set to; '' it stays
-- ARGV[12…] string n pairs of field and value, then e pairs of field and value
--                  (a value of '' means absent), then k of field, expected and new value,
--                  then fields to delete
-- Returns  {status, …}: {1 done, created ms, absolute ms, ttl ms, own MaxAge, user before
--          or '' if the user stays}, {0 gone}, {2 there already, mode a}, {3 not as
--          expected}, {4 superseded, hash of the next key}, {5 bound to another, user},
--          {6 another field e, what it is}
-- Writes   KEYS[1] with PEXPIRE; in mode r by RENAME of KEYS[2], where n is left
local key = KEYS[1]
local mode = ARGV[1]
local idle = tonumber(ARGV[2])
local longest = tonumber(ARGV[3])
local own = ARGV[4]
local who = ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local m = redis.call('HGET', key, 'm')
local from = key
if not m and KEYS[2] then
  from = KEYS[2]
  m = redis.call('HGET', from, 'm')
end
if m then
  if mode == 'a' then return {2} end
elseif mode ~= 'c' then
  local next = redis.call('HGET', from, 'n')
  if next then return {4, next} end
  if mode ~= 'a' then return {0} end
end

local created, absolute = now, nil
if m then
  local c, a, o = string.match(m, '^(%d+),(%d+),%d+,%d+,(-?%d+)$')
  if c then
    created, absolute = tonumber(c), tonumber(a)
    if own == 'keep' then own = o end
  end
end
if own == 'keep' then own = '0' end
if tonumber(own) > 0 then
  idle = own * 1000
  if ARGV[5] == '1' and idle > longest then
    longest = idle
    -- Told so now, it counts for a session that was to end before.
    if ARGV[4] ~= 'keep' and absolute then absolute = math.max(absolute, idle) end
  end
end
absolute = math.min(absolute or longest, longest)
local former = ''
if who ~= '' then
  former = redis.call('HGET', from, 'u') or ''
  local user = string.sub(who, 2)
  if string.sub(who, 1, 1) == '=' then
    if former ~= user then return {5, former} end
  elseif mode ~= 'u' and user ~= '' and user ~= former then
    created, absolute = now, longest
  end
end
idle = math.min(idle, longest)
local ttl = math.min(idle, created + absolute - now)
if ttl <= 0 then
  redis.call('UNLINK', from)
  return {0}
end

local bond = ARGV[11]
if ARGV[10] ~= '*' then
  local held = redis.call('HGET', from, 'e') or ''
  if held ~= ARGV[10] and held ~= bond then return {6, held} end
end
local n, e, k = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local at = 12 + 2 * n
for i = at, at + 2 * e - 1, 2 do
  if (redis.call('HGET', from, ARGV[i]) or '') ~= ARGV[i + 1] then return {3} end
end
if from ~= key and mode == 'r' then
  redis.call('RENAME', from, key)
  redis.call('HSET', from, 'n', string.sub(key, -43))
  redis.call('PEXPIRE', from, 30000)
end
if bond ~= '' then redis.call('HSET', key, 'e', bond) end
for i = 12, at - 1, 2 do
  redis.call('HSET', key, ARGV[i], ARGV[i + 1])
end
at = at + 2 * e
for i = at, at + 3 * k - 1, 3 do
  if redis.call('HGET', key, ARGV[i]) == ARGV[i + 1] then
    redis.call('HSET', key, ARGV[i], ARGV[i + 2])
  end
end
for i = at + 3 * k, #ARGV do
  redis.call('HDEL', key, ARGV[i])
end
redis.call('HSET', key, 'm', string.format('%.0f,%.0f,%.0f,%.0f,%s', created, absolute, idle, math.max(now - created, 0), own))
redis.call('PEXPIRE', key, string.format('%.0f', ttl))
return {1, created, absolute, ttl, tonumber(own), former}
