-- change.lua: change values of sessions whose life needs no prolonging, the commonest save. It does
-- what save.lua does but for the clock and the expiry, and less yet when several saves meet.
--
-- A session is there if a field to set was, which setting it tells; so the field m is asked
-- for only where all are new, and they are taken back where it is missing.
--
-- KEYS[…]  hash    sessions
-- ARGV[1]  int     number of fields to set in each; ARGV[2] number of fields to delete
-- ARGV[3…] string  for each: pairs of field and value to set, then fields to delete
-- Returns  for each 1 done, 0 gone, -1 the key holds something else
-- Writes   KEYS
local call, try = redis.call, redis.pcall
local set, del = 2 * ARGV[1], ARGV[2]
local out, a = {}, 3
for i = 1, #KEYS do
  local key = KEYS[i]
  local first, last = a, a + set
  a = last + del
  local new, answer = 0, 1
  for j = first, last - 1, 200 do
    local n
    if set == 2 then
      n = try('HSET', key, ARGV[first], ARGV[first + 1])
    else
      n = try('HSET', key, unpack(ARGV, j, math.min(j + 199, last - 1)))
    end
    if type(n) ~= 'number' then
      local kind = call('TYPE', key).ok
      if kind == 'hash' or kind == 'none' then return n end
      new, answer = 0, -1
      break
    end
    new = new + n
  end
  if answer == 1 and 2 * new == set then
    local m = try('HEXISTS', key, 'm')
    if m ~= 1 then
      answer = m == 0 and 0 or -1
      if new > 0 then
        for j = first, last - 1, 2 do
          call('HDEL', key, ARGV[j])
        end
      end
    end
  end
  if answer == 1 then
    for j = last, a - 1 do
      call('HDEL', key, ARGV[j])
    end
  end
  out[i] = answer
end
return out
