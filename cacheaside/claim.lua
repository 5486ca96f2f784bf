-- claim.lua: take the right to refresh an entry that stays readable meanwhile.
--
-- KEYS[1]  string  the entry
-- ARGV[1]  string  its first 17 bytes as the caller read them
-- ARGV[2]  int     how long the claim lasts, milliseconds, > 0
-- ARGV[3]  int     1: take the claim from whoever has it; 0: don't
-- Returns  int     the server's time in milliseconds if claimed, 0 if another has the claim, -1 if the entry changed
-- Writes   KEYS[1], bytes 19 to 31, keeping its expiry, only when claimed
-- Source   one refresher for the early refresh of XFetch, A. Vattani et al., VLDB 2015
local key = KEYS[1]
if redis.call('GETRANGE', key, 0, 16) ~= ARGV[1] then return -1 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local claimed = tonumber(redis.call('GETRANGE', key, 19, 31)) or 0
if claimed > now and ARGV[3] ~= '1' then return 0 end
redis.call('SETRANGE', key, 19, string.format('%013.0f', now + ARGV[2]))
return now
