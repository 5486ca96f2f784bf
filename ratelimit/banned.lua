-- banned.lua: look up a ban by itself.
--
-- KEYS[1]  string  ban: until, microseconds since the Unix epoch
-- Returns  {now, until}, microseconds; until is 0 without a ban
-- Writes   nothing
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local v = redis.call('GET', KEYS[1])
local till = v and tonumber(v) or 0
return { now, till > now and till or 0 }
