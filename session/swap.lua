-- swap.lua: replace, prolong or delete a session in redisstore's layout if it is
-- still what was loaded.
--
-- KEYS[1]  string  the session as redisstore's serializer wrote it
-- ARGV[1]  string  what was loaded
-- ARGV[2]  string  what replaces it; '' to delete it
-- ARGV[3]  int     time to live, milliseconds, > 0
-- Returns  {1} done, {0} gone, {2, current} changed by somebody else
-- Writes   KEYS[1] with PX
local key = KEYS[1]
local current = redis.call('GET', key)
if not current then
  return {0}
end
if current ~= ARGV[1] then
  -- Its own reply may have been lost, and this be the repetition.
  if current ~= ARGV[2] then
    return {2, current}
  end
end
if ARGV[2] == '' then
  redis.call('UNLINK', key)
else
  redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
end
return {1}
