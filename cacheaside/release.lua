-- release.lua: give a lease back without a value.
--
-- KEYS[1]  string  the entry
-- ARGV[1]  string  the lease, 17 bytes
-- Returns  int     1 if it stood, 0 otherwise
-- Writes   KEYS[1], removed if the lease stood
local key = KEYS[1]
if redis.call('GETRANGE', key, 0, 16) == ARGV[1] then return redis.call('UNLINK', key) end
return 0
