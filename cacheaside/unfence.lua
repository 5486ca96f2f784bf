-- unfence.lua: lift a fence. A fence that is gone becomes an invalidation of what came in its place.
--
-- KEYS[1]  string  the entry
-- ARGV[1]  string  token of the fence, 16 bytes
-- ARGV[2]  string  channel, or '' to tell nobody
-- ARGV[3]  string  message
-- Returns  int     1 if the fence stood, 0 if it was lost
-- Writes   KEYS[1]: without the token, or removed with the last one
local key = KEYS[1]
local held = 0
local v = redis.pcall('GETRANGE', key, 0, 0)
if v ~= 'F' then
  redis.call('UNLINK', key)
else
  v = redis.call('GET', key)
  local a, b = string.find(v, ARGV[1], 2, true)
  if a then
    held = 1
    local rest = string.sub(v, 1, a - 1) .. string.sub(v, b + 1)
    if #rest == 1 then redis.call('UNLINK', key) else redis.call('SET', key, rest, 'KEEPTTL') end
  end
end
if ARGV[2] ~= '' then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
return held
