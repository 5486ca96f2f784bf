-- renew.lua: prolong leases that are still held.
--
-- KEYS[i]  zset    concurrency policy i, as in decide.lua
-- ARGV[1]  string  lease
-- ARGV[2…] per key: lease length in microseconds, units held
-- Returns  1 if all were held, 0 if one had ended; then none is prolonged
-- Writes   KEYS[i]
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
for i = 1, #KEYS do
  local key = KEYS[i]
  local s = redis.call('ZSCORE', key, ARGV[1])
  if tonumber(ARGV[2 * i + 1]) > 0 and (not s or tonumber(s) <= now) then return 0 end
end
for i = 1, #KEYS do
  local key, w, n = KEYS[i], tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  for u = 1, n do
    local id = ARGV[1]
    if u > 1 then id = string.format('%s:%.0f', id, u) end
    redis.call('ZADD', key, 'XX', now + w, id)
  end
  if n > 0 then
    local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
    redis.call('PEXPIRE', key, math.ceil((last[2] - now) / 1000) + 1000)
  end
end
return 1
