-- fence.lua: put a fence in place of an entry. While it stands nothing can be filled, and readers load for themselves.
--
-- KEYS[1]  string  the entry
-- ARGV[1]  string  token of this fence, 16 bytes
-- ARGV[2]  int     how long it stands at most, milliseconds, > 0
-- ARGV[3]  string  channel, or '' to tell nobody
-- ARGV[4]  string  message
-- Returns  int     1
-- Writes   KEYS[1]: 'F' and the tokens of all fences, with PX the longest of their times
local key = KEYS[1]
local v = redis.pcall('GETRANGE', key, 0, 0)
if v == 'F' then
  v = redis.call('GET', key)
  if not string.find(v, ARGV[1], 2, true) then redis.call('APPEND', key, ARGV[1]) end
  if redis.call('PTTL', key) < tonumber(ARGV[2]) then redis.call('PEXPIRE', key, ARGV[2]) end
else
  redis.call('SET', key, 'F' .. ARGV[1], 'PX', ARGV[2])
end
if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return 1
