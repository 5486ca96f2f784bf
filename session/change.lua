-- change.lua: change values of sessions whose life needs no prolonging, the commonest save. It does
-- what save.lua does but for the clock and the expiry, and less yet when several saves meet.
--
-- A session is there if a field to set was, which setting it tells; so the field m is asked
-- for only where all are new, and they are taken back where it is missing.
--
-- KEYS[…]  hash    sessions
-- ARGV[1]  int     number of fields to set in each; ARGV[2] number of fields to delete
-- ARGV[3…] string  for each: pairs of field and value to set, then fields to delete
-- Returns  for each 1 done, 0 gone, 2 superseded, -1 the key holds something else; {1} if all
--          are done
-- Writes   KEYS
local call = redis.call
local try = redis.pcall
local set, del = 2 * ARGV[1], tonumber(ARGV[2])
local single = set == 2 and del == 0
local out, a = nil, 3
for i = 1, #KEYS do
  local key = KEYS[i]
  local last = a + set - 1 -- of the values
  local told
  if single then told = try('HSET', key, ARGV[a], ARGV[a + 1]) end
  if told ~= 0 then -- most saves set one value that was there before
    local new, answer = 0, 1
    for j = a, last, 200 do
      local n = told or try('HSET', key, unpack(ARGV, j, math.min(j + 199, last)))
      if type(n) ~= 'number' then
        -- A key of another type has no field to get either.
        if type(try('HGET', key, 'm')) ~= 'table' then return n end
        answer = -1
        break
      end
      new = new + n
    end
    if answer == 1 and 2 * new == set then
      local m = try('HGET', key, 'm')
      if type(m) ~= 'string' then
        answer = m and -1 or try('HGET', key, 'n') and 2 or 0
        for j = a, last, 2 do
          call('HDEL', key, ARGV[j])
        end
      end
    end
    if answer == 1 then
      for j = last + 1, last + del do
        call('HDEL', key, ARGV[j])
      end
    else
      out = out or {}
      out[i] = answer
    end
  end
  a = last + del + 1
end
if not out then return { 1 } end
for i = 1, #KEYS do
  out[i] = out[i] or 1
end
return out
