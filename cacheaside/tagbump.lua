-- tagbump.lua: give a tag a version that it never had, and say so. Executing it again, even late, does so again.
--
-- KEYS[1]  string  version of the tag
-- ARGV[1]  string  random bytes
-- ARGV[2]  int     how long the version is kept from now on, milliseconds, > 0
-- ARGV[3]  string  channel, or '' to tell nobody
-- ARGV[4]  string  message
-- Returns  int     1
-- Writes   KEYS[1] with PX
local key = KEYS[1]
local t = redis.call('TIME')
local v = redis.call('GET', key) or ''
v = string.sub(redis.sha1hex(v .. ARGV[1] .. t[1] .. '.' .. t[2]), 1, 16)
redis.call('SET', key, v, 'PX', ARGV[2])
if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return 1
