-- end.lua: delete a session, whoever it is bound to or if it is bound to a user.
--
-- KEYS[1]  hash    the session
-- KEYS[2]  zset    the user's index; left out if there is none to change, and on a
--                  cluster, where it may be in another slot
-- ARGV[1]  string  the user; '' for anybody's session
-- ARGV[2]  string  the session's public id
-- Returns  {1, user it was bound to or ''} deleted, {0} not there, {-1} bound to somebody
--          else or to nobody, {2, hash of the next key} superseded by another id
-- Writes   KEYS[1], by UNLINK; KEYS[2]
local key = KEYS[1]
local index = KEYS[2]
if not redis.call('HGET', key, 'm') then
  local next = redis.call('HGET', key, 'n')
  if next then return {2, next} end
  return {0}
end
local user = redis.call('HGET', key, 'u') or ''
if ARGV[1] ~= '' and user ~= ARGV[1] then
  return {-1}
end
redis.call('UNLINK', key)
if index then
  redis.call('ZREM', index, ARGV[2])
end
return {1, user}
