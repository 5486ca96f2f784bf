-- release.lua: give a lease back, or remove an entry, without a value in its place.
--
-- KEYS[1]  string  the entry
-- ARGV[1]  string  its first 17 bytes
-- ARGV[2]  string  what stands there for a moment: 'U' and 16 random bytes; '' for nothing
-- ARGV[3]  int     for how long, milliseconds, > 0
-- Returns  int     1 if it stood, 0 otherwise
-- Writes   KEYS[1], removed or replaced with PX, if it stood
local key = KEYS[1]
if redis.call('GETRANGE', key, 0, 16) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('UNLINK', key) end
redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
return 1
