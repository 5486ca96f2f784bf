-- ban.lua: ban a subject for a time that starts now.
--
-- KEYS[1]  string  until, microseconds since the Unix epoch
-- ARGV[1]  int     how long, microseconds
-- Returns  the end of the ban
-- Writes   KEYS[1] with the ban as its TTL
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local long = tonumber(ARGV[1])
redis.call('SET', KEYS[1], string.format('%.0f', now + long), 'PX', math.ceil(long / 1000))
return now + long
