-- reset.lua: forget what was taken, and note when, so that no earlier reservation gives back later units.
--
-- KEYS[n]  the states of the policies, as in decide.lua; then for each policy a string: when that was last done,
--          microseconds since the Unix epoch; then what else is known of the states
-- ARGV[1]  int     policies
-- ARGV[2]  int     how long an earlier reservation may count, milliseconds
-- Returns  1
-- Writes   KEYS; nothing for a policy without a state
local t = redis.call('TIME')
local now = string.format('%.0f', t[1] * 1000000 + t[2])
local np = tonumber(ARGV[1])
for i = 1, #KEYS do
  if i <= np then
    if redis.call('UNLINK', KEYS[i]) == 1 then redis.call('SET', KEYS[np + i], now, 'PX', ARGV[2]) end
  elseif i > 2 * np then
    redis.call('UNLINK', KEYS[i])
  end
end
return 1
