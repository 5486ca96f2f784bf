-- index.lua: enter a session into the index of a user's sessions, if there is room.
--
-- Each entering changes the score of its entry, by which leave.lua knows whether there was
-- one since.
--
-- KEYS[1]  zset    public ids of the user's sessions by the time they were entered, in
--                  milliseconds; that of one that is about to be ended for want of room
--                  is negative
-- ARGV[1]  string  public id
-- ARGV[2]  int     longest absolute lifetime of a session, milliseconds, > 0
-- ARGV[3]  int     how many there may be, for a session that is not among them; 0: any
-- ARGV[4]  string  public id that the session has until now, or ''
-- Returns  {number of entries, 1 if this one is new, else 0, its score}, or {-1} if there was
--          no room
-- Writes   KEYS[1] with PEXPIRE, which only ever gets longer
local index = KEYS[1]
local longest = tonumber(ARGV[2])
local limit = tonumber(ARGV[3])
if limit > 0 and not redis.call('ZSCORE', index, ARGV[1]) and not redis.call('ZSCORE', index, ARGV[4]) then
  if redis.call('ZCARD', index) >= limit then return {-1} end
end
local time = redis.call('TIME')
local score = time[1] * 1000 + time[2] / 1000
local before = tonumber(redis.call('ZSCORE', index, ARGV[1]) or '0')
if score <= before then score = before + 0.001 end
score = string.format('%.3f', score)
local added = redis.call('ZADD', index, score, ARGV[1])
if redis.call('PTTL', index) < longest + 60000 then
  redis.call('PEXPIRE', index, string.format('%.0f', longest + 60000))
end
return {redis.call('ZCARD', index), added, score}
