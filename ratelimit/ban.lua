-- ban.lua: ban a subject for a time that starts now, and raise the flag that says that there are bans.
--
-- KEYS[n]  string  ban or flag: until, microseconds since the Unix epoch
-- ARGV[1]  int     how long the ban lasts, microseconds
-- ARGV[2]  string  which of KEYS is the flag; it stays a second longer than any ban
-- Returns  1
-- Writes   KEYS[n] with its time as its TTL; a flag that stays longer is left alone
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
for i = 1, #KEYS do
  local key, long, has = KEYS[i], tonumber(ARGV[1]), 0
  if key == ARGV[2] then
    long = long + 1000000
    has = tonumber(redis.pcall('GET', key)) or 0
  end
  if now + long > has then
    redis.call('SET', key, string.format('%.0f', now + long), 'PX', math.ceil(long / 1000))
  end
end
return 1
