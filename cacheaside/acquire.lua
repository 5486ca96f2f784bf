-- acquire.lua: take the lease of a key that has no value.
--
-- KEYS[1]  string  the entry
-- ARGV[1]  string  'L' and the token of this acquisition, 17 bytes
-- ARGV[2]  int     how long the lease lasts, milliseconds, > 0
-- ARGV[3]  int     1: replace what is there if it begins with ARGV[4] or is not a string; 0: don't
-- ARGV[4]  string  up to 64 first bytes of an unreadable value
-- Returns  int     the server's time in milliseconds if the lease is taken (also when a retry finds it taken), or
--          string  what the key holds
-- Writes   KEYS[1] with PX, only when the lease is taken
-- Source   leases, R. Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013, section 3.2.1
local key = KEYS[1]
local v = redis.pcall('GET', key)
if type(v) == 'table' then
  if v.err and ARGV[3] ~= '1' then return v end
elseif v and v ~= ARGV[1] then
  if ARGV[3] ~= '1' or string.sub(v, 1, 64) ~= ARGV[4] then return v end
end
redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
local t = redis.call('TIME')
return t[1] * 1000 + math.floor(t[2] / 1000)
