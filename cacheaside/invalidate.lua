-- invalidate.lua: remove an entry, break its lease, and say so. A fence stays.
--
-- KEYS[1]  string  the entry
-- ARGV[1]  string  channel, or '' to tell nobody
-- ARGV[2]  string  message
-- Returns  int     1 if something was removed, 0 otherwise
-- Writes   KEYS[1], removed unless it is a fence
local key = KEYS[1]
local n = 0
local v = redis.pcall('GETRANGE', key, 0, 0)
if v ~= 'F' then n = redis.call('UNLINK', key) end
if ARGV[1] ~= '' then redis.call('PUBLISH', ARGV[1], ARGV[2]) end
return n
