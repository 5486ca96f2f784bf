-- revoke.lua: delete a session if it is bound to a user.
--
-- KEYS[1]  hash    the session
-- KEYS[2]  zset    the user's index; left out on a cluster, where it may be in
--                  another slot
-- ARGV[1]  string  the user
-- ARGV[2]  string  the session's public id
-- Returns  1 deleted, 0 not there, -1 bound to somebody else or to nobody
-- Writes   KEYS[1], by UNLINK; KEYS[2]
local key = KEYS[1]
local index = KEYS[2]
if redis.call('EXISTS', key) == 0 then
  return 0
end
if redis.call('HGET', key, 'u') ~= ARGV[1] then
  return -1
end
redis.call('UNLINK', key)
if index then
  redis.call('ZREM', index, ARGV[2])
end
return 1
