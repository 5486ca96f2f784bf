-- tagread.lua: the version of a tag, made up if there is none.
--
-- KEYS[1]  string  version of the tag
-- ARGV[1]  string  random bytes
-- ARGV[2]  int     how long the version is kept from now on at least, milliseconds, > 0
-- Returns  string  the version, 16 hexadecimal digits
-- Writes   KEYS[1] with PX
local key = KEYS[1]
local v = redis.call('GET', key)
if v then
  -- Caches that share it may have longer lives.
  if redis.call('PTTL', key) < tonumber(ARGV[2]) then redis.call('PEXPIRE', key, ARGV[2]) end
  return v
end
local t = redis.call('TIME')
v = string.sub(redis.sha1hex(ARGV[1] .. t[1] .. '.' .. t[2]), 1, 16)
redis.call('SET', key, v, 'PX', ARGV[2])
return v
