-- unfence.lua: lift a fence. A fence that is gone becomes an invalidation of what came in its place.
--
-- KEYS[1]  string  the entry
-- ARGV[1]  string  token of the fence, 10 bytes
-- ARGV[2]  string  channel, or '' to tell nobody
-- ARGV[3]  string  message
-- Returns  int     1 if the fence stood, 0 if it was lost
-- Writes   KEYS[1]: without the fence and those that have ended, with PX the longest of the rest; or removed with the last one
local key = KEYS[1]
local held = 0
local kind = redis.pcall('GETRANGE', key, 0, 0)
if kind ~= 'F' then
  redis.call('UNLINK', key)
else
  local t = redis.call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  local v = redis.call('GET', key)
  local rest = ''
  local last = now
  for i = 2, #v - 15, 16 do
    local till = 0
    for j = i + 10, i + 15 do till = till * 256 + string.byte(v, j) end
    if till > now then
      if string.sub(v, i, i + 9) == ARGV[1] then
        held = 1
      else
        rest = rest .. string.sub(v, i, i + 15)
        if till > last then last = till end
      end
    end
  end
  if rest == '' then
    redis.call('UNLINK', key)
  else
    redis.call('SET', key, 'F' .. rest, 'PX', string.format('%.0f', math.max(math.min(last - now, redis.call('PTTL', key)), 1)))
  end
end
if ARGV[2] ~= '' then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
return held
