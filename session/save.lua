-- save.lua: create, change, prolong or rename one session, atomically.
--
-- A session that is gone stays gone: every mode but create needs the field m of
-- an existing session. All modes but a may be repeated with the same outcome.
--
-- KEYS[1]  hash    the session; in mode r under its new key
-- KEYS[2]  hash    in mode r only: the session under its old key, same slot
-- ARGV[1]  string  c create, u update, r regenerate, a adopt (create unless there),
--                  t touch (only while the session's own MaxAge is ARGV[4])
-- ARGV[2]  int     idle time, milliseconds, > 0
-- ARGV[3]  int     longest absolute lifetime, milliseconds, > 0
-- ARGV[4]  int     the session's own MaxAge, seconds; 0 the store's; -1 none
-- ARGV[5]  string  1: the absolute lifetime starts now; else ''
-- ARGV[6]  int     number of fields to set, n
-- ARGV[7]  int     number of fields that must still be as expected, e
-- ARGV[8…] string  n pairs of field and value, then e pairs of field and value
--                  (a value of '' means absent), then fields to delete
-- Returns  {status, created ms, absolute ms, ttl ms}; status 1 done, 0 gone,
--          2 there already (mode a), 3 not as expected
-- Writes   KEYS[1] with PEXPIRE; in mode r by RENAME of KEYS[2]
local key = KEYS[1]
local mode = ARGV[1]
local idle = tonumber(ARGV[2])
local longest = tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local m = redis.call('HGET', key, 'm')
local from = key
if mode == 'r' and not m then
  from = KEYS[2]
  m = redis.call('HGET', from, 'm')
end
if mode == 'a' then
  if m then return {2} end
elseif mode ~= 'c' and not m then
  return {0}
end

local created, absolute = now, longest
if m then
  local c, a, own = string.match(m, '^(%d+),(%d+),%d+,%d+,(-?%d+)$')
  if c then
    created, absolute = tonumber(c), math.min(tonumber(a), longest)
    -- A touch is sent in the background: a save may have overtaken it.
    if mode == 't' and own ~= ARGV[4] then return {0} end
  end
end
if ARGV[5] == '1' then
  created, absolute = now, longest
end
local ttl = math.min(idle, created + absolute - now)
if ttl <= 0 then
  redis.call('UNLINK', from)
  return {0}
end

local n, e = tonumber(ARGV[6]), tonumber(ARGV[7])
local at = 8 + 2 * n
for i = at, at + 2 * e - 1, 2 do
  if (redis.call('HGET', from, ARGV[i]) or '') ~= ARGV[i + 1] then return {3} end
end
if from ~= key then
  redis.call('RENAME', from, key)
end
for i = 8, at - 1, 2 do
  redis.call('HSET', key, ARGV[i], ARGV[i + 1])
end
for i = at + 2 * e, #ARGV do
  redis.call('HDEL', key, ARGV[i])
end
redis.call('HSET', key, 'm', string.format('%.0f,%.0f,%.0f,%.0f,%s', created, absolute, idle, math.max(now - created, 0), ARGV[4]))
redis.call('PEXPIRE', key, string.format('%.0f', ttl))
return {1, created, absolute, ttl}
