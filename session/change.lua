-- change.lua: change values of sessions whose life needs no prolonging, the commonest save. It does
-- what save.lua does but for the clock and the expiry, and less yet when several saves meet.
--
-- KEYS[…]  hash    sessions; one is left alone unless it has the field m
-- ARGV[…]  string  for each: number of fields to set, number of fields to delete, then pairs of field
--                  and value to set, then fields to delete
-- Returns  for each 1 done, 0 gone, -1 the key holds something else
-- Writes   KEYS
local call = redis.call
local out, a = {}, 1
for i = 1, #KEYS do
  local key = KEYS[i]
  local first, del = a + 2, a + 2 + 2 * ARGV[a]
  a = del + ARGV[a + 1]
  local m = redis.pcall('HGET', key, 'm')
  if not m then
    out[i] = 0
  elseif type(m) == 'table' then
    out[i] = -1
  else
    for j = first, del - 1, 200 do
      call('HSET', key, unpack(ARGV, j, math.min(j + 199, del - 1)))
    end
    for j = del, a - 1 do
      call('HDEL', key, ARGV[j])
    end
    out[i] = 1
  end
end
return out
