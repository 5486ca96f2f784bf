-- reset.lua: forget what was taken, and note when, so that no earlier reservation gives back later units.
--
-- KEYS[1]  string  when that was last done, microseconds since the Unix epoch
-- KEYS[n]  the states of the policies, as in decide.lua
-- ARGV[1]  int     how long an earlier reservation may count, milliseconds
-- Returns  1 if there was a state, else 0
-- Writes   KEYS; nothing if there was no state
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local there = 0
for i = 2, #KEYS do there = there + redis.call('UNLINK', KEYS[i]) end
if there == 0 then return 0 end
redis.call('SET', KEYS[1], string.format('%.0f', now), 'PX', ARGV[1])
return 1
