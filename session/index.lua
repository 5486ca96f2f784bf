-- index.lua: enter a session into the index of a user's sessions.
--
-- KEYS[1]  zset    public ids of the user's sessions by the time they were entered
-- ARGV[1]  string  public id
-- ARGV[2]  int     longest absolute lifetime of a session, milliseconds, > 0
-- Returns  number of entries
-- Writes   KEYS[1] with PEXPIRE; drops entries older than any session can be
local index = KEYS[1]
local longest = tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', index, '-inf', string.format('(%.0f', now - longest - 60000))
redis.call('ZADD', index, string.format('%.0f', now), ARGV[1])
redis.call('PEXPIRE', index, string.format('%.0f', longest + 60000))
return redis.call('ZCARD', index)
