-- set.lua: store a value given by a caller, breaking a lease, but neither a fence nor a newer version.
--
-- KEYS[1]  string  the entry
-- ARGV[1]  string  the new entry
-- ARGV[2]  int     how long Redis keeps it, milliseconds, > 0
-- ARGV[3]  string  8 bytes, its version, most significant first; '' for none
-- ARGV[4]  int     offset of the version in an entry that has one
-- ARGV[5]  string  channel, or '' to tell nobody
-- ARGV[6]  string  message
-- Returns  int     1 stored, 0 the stored version is newer, -1 the key is fenced
-- Writes   KEYS[1] with PX, only when stored
local key = KEYS[1]
local head = redis.pcall('GETRANGE', key, 0, 18)
if type(head) == 'string' then
  if string.sub(head, 1, 1) == 'F' then return -1 end
  if ARGV[3] ~= '' and string.sub(head, 1, 1) == 'V' and #head == 19 and math.floor(string.byte(head, 19) / 2) % 2 == 1 then
    local at = tonumber(ARGV[4])
    local old = redis.call('GETRANGE', key, at, at + 7)
    for i = 1, #old do
      local a, b = string.byte(old, i), string.byte(ARGV[3], i)
      if a > b then return 0 end
      if a < b then break end
    end
  end
end
redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
if ARGV[5] ~= '' then redis.call('PUBLISH', ARGV[5], ARGV[6]) end
return 1
