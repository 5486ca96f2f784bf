-- fence.lua: put a fence in place of an entry. While it stands nothing can be filled, and readers load for themselves.
--
-- KEYS[1]  string  the entry
-- ARGV[1]  string  token of this fence, 10 bytes; one that stands already gets its time anew
-- ARGV[2]  int     how long it stands at most, milliseconds, > 0
-- ARGV[3]  string  channel, or '' to tell nobody
-- ARGV[4]  string  message
-- Returns  int     1
-- Writes   KEYS[1]: 'F', and for each fence that stands its token and its end, 6 bytes; with PX the longest of them
local key = KEYS[1]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local last = now + ARGV[2]
local v = ''
local kind = redis.pcall('GETRANGE', key, 0, 0)
if kind == 'F' then v = redis.call('GET', key) end
local fences = 'F' .. ARGV[1]
local n = last
local finish = ''
for i = 1, 6 do
  finish = string.char(n % 256) .. finish
  n = math.floor(n / 256)
end
fences = fences .. finish
for i = 2, #v - 15, 16 do
  local till = 0
  for j = i + 10, i + 15 do till = till * 256 + string.byte(v, j) end
  if till > now and string.sub(v, i, i + 9) ~= ARGV[1] then
    fences = fences .. string.sub(v, i, i + 15)
    if till > last then last = till end
  end
end
-- A fence of a version without ends has random bytes for one: it ends when this key did before.
local px = last - now
if px > tonumber(ARGV[2]) then px = math.max(tonumber(ARGV[2]), math.min(px, redis.call('PTTL', key))) end
redis.call('SET', key, fences, 'PX', string.format('%.0f', px))
if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], ARGV[4]) end
return 1
