-- fill.lua: store a loaded value, only while the lease or the entry it replaces still stands.
--
-- KEYS[1]  string  the entry
-- ARGV[1]  string  first 17 bytes expected: the lease, or the entry that was refreshed
-- ARGV[2]  string  the new entry
-- ARGV[3]  int     how long Redis keeps it, milliseconds, > 0
-- Returns  int     1 stored, 2 already stored (a retry), 0 refused
-- Writes   KEYS[1] with PX, only when stored
local key = KEYS[1]
local cur = redis.call('GETRANGE', key, 0, 16)
if cur == ARGV[1] then
  redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
  return 1
end
if cur == string.sub(ARGV[2], 1, 17) then return 2 end
return 0
