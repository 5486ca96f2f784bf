-- leave.lua: take an entry out of a user's index, unless it was entered again.
--
-- KEYS[1]  zset    public ids of the user's sessions by the time they were entered
-- ARGV[1]  string  public id
-- ARGV[2]  string  the score that it had
-- Returns  number of entries that it took out
-- Writes   KEYS[1]
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score and tonumber(score) == tonumber(ARGV[2]) then
  return redis.call('ZREM', KEYS[1], ARGV[1])
end
return 0
