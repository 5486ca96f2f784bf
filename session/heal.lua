-- heal.lua: drop entries of a user's index whose sessions were found to be gone.
--
-- An entry is made just before its session is bound, so young ones are kept.
--
-- KEYS[1]  zset    public ids of the user's sessions by the time they were entered
-- ARGV[1…] string  public ids to drop, any number
-- Returns  number of entries dropped
-- Writes   KEYS[1]
local index = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local dropped = 0
for i = 1, #ARGV do
  local entered = redis.call('ZSCORE', index, ARGV[i])
  if entered and tonumber(entered) < now - 60000 then
    dropped = dropped + redis.call('ZREM', index, ARGV[i])
  end
end
return dropped
