-- change.lua: change values of sessions whose life needs no prolonging, the commonest save. It does
-- what save.lua does but for the clock and the expiry, and less yet when several saves meet.
--
-- A session is there if a field to set was, which setting it tells; so the field m is asked
-- for only where all are new, and they are taken back where it is missing.
--
-- KEYS[…]  hash    sessions
-- ARGV[1]  int     number of fields to set in each; ARGV[2] number of fields to delete
-- ARGV[3…] string  for each: pairs of field and value to set, then fields to delete
-- Returns  for each 1 done, 0 gone, -1 the key holds something else; {1} if all are done
-- Writes   KEYS
local call, try = redis.call, redis.pcall
local keys, args = KEYS, ARGV -- locals are found in half the time
local set, del = 2 * args[1], tonumber(args[2])
-- change returns the answer for key, whose arguments are first to last, or an error. told is what
-- setting its only field has answered already.
local function change(key, first, last, told)
  local new, values = 0, first + set - 1
  for j = first, values, 200 do
    local n = told or try('HSET', key, unpack(args, j, math.min(j + 199, values)))
    if type(n) ~= 'number' then
      -- A key of another type has no field to get either.
      return type(try('HGET', key, 'm')) == 'table' and -1 or n
    end
    new = new + n
  end
  if 2 * new == set then
    local m = try('HGET', key, 'm')
    if type(m) ~= 'string' then
      for j = first, values, 2 do
        call('HDEL', key, args[j])
      end
      return m and -1 or 0
    end
  end
  for j = values + 1, last do
    call('HDEL', key, args[j])
  end
  return 1
end
local step, single = set + del, set == 2 and del == 0
local out, a = nil, 3
for i = 1, #keys do
  local n
  if single then n = try('HSET', keys[i], args[a], args[a + 1]) end
  if n ~= 0 then -- most saves set one value that was there before
    local answer = change(keys[i], a, a + step - 1, n)
    if type(answer) == 'table' then return answer end
    if answer ~= 1 then
      out = out or {}
      out[i] = answer
    end
  end
  a = a + step
end
if not out then return { 1 } end
for i = 1, #keys do
  out[i] = out[i] or 1
end
return out
