-- change.lua: change values of sessions whose life needs no prolonging, the commonest save. It does
-- what save.lua does but for the clock and the expiry, and less yet when several saves meet.
--
-- KEYS[…]  hash    sessions; one is left alone unless it has the field m
-- ARGV[1]  int     number of fields to set in each; ARGV[2] number of fields to delete
-- ARGV[3…] string  for each: pairs of field and value to set, then fields to delete
-- Returns  for each 1 done, 0 gone, -1 the key holds something else
-- Writes   KEYS
local call = redis.call
local set, del = 2 * ARGV[1], ARGV[2]
local out, a = {}, 3
for i = 1, #KEYS do
  local key = KEYS[i]
  local first, last = a, a + set
  a = last + del
  local m = redis.pcall('HGET', key, 'm')
  if type(m) == 'string' then
    if set == 2 then
      call('HSET', key, ARGV[first], ARGV[first + 1])
    else
      for j = first, last - 1, 200 do
        call('HSET', key, unpack(ARGV, j, math.min(j + 199, last - 1)))
      end
    end
    for j = last, a - 1 do
      call('HDEL', key, ARGV[j])
    end
    out[i] = 1
  else
    out[i] = m and -1 or 0
  end
end
return out
