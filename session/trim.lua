-- trim.lua: choose the sessions of a user that are over the limit.
--
-- What is chosen gets a negative time in the index: nobody counts it any more, and it
-- is found again if whoever chose it does not come to end it.
--
-- KEYS[1]  zset    public ids of the user's sessions by the time they were entered
-- ARGV[1]  int     how many there may be, > 0
-- ARGV[2]  string  public id of the session that is not chosen
-- ARGV[3…] string  public ids of the others, the last used first
-- Returns  public ids to end
-- Writes   KEYS[1]
local index = KEYS[1]
local limit = tonumber(ARGV[1])
local kept, over = 0, {}
local own = redis.call('ZSCORE', index, ARGV[2])
if own and tonumber(own) > 0 then kept = 1 end
for i = 3, #ARGV do
  local entered = redis.call('ZSCORE', index, ARGV[i])
  if entered then
    if tonumber(entered) > 0 and kept < limit then
      kept = kept + 1
    else
      redis.call('ZADD', index, string.format('%.0f', -math.abs(tonumber(entered))), ARGV[i])
      over[#over + 1] = ARGV[i]
    end
  end
end
return over
