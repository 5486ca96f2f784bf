-- tokenbucket.lua: a part of scripts: read the state v of a token bucket.
--
-- Returns  locals: l level in token·ticks, s time from which it drains, g period, gk tick, lives the time until
--          which the key is there at least (0: not known), all in microseconds; entered the units that went in,
--          counted from a time in microseconds (false: not known). l is false if v is no bucket's state
-- Writes   nothing; scripts write "C" (for ticks of 1, "D" of 10, …) and level, since, period, lives and entered
--          as doubles, since what text takes to read and write is more than all the rest; or the text
--          "level:since:periodxtick:entered" where the server has no struct. "B" and level, since, period, tick
--          and lives, and the text without entered, are those of an earlier version
local l, s, g, gk, lives, entered = false
local tag = string.byte(v) or 0
if tag >= 66 and #v == 41 and lib then
  tag, l, s, g, lives, entered = lib.unpack('<Bddddd', v)
  if tag == 66 then
    gk, lives, entered = lives, entered, false
  else
    gk = tag == 67 and 1 or 10 ^ (tag - 67)
  end
else
  l, s, g, gk, entered = string.match(v, '^(%d+):(%d+):(%d+)x(%d+):?(%d*)$')
  l, s, g, gk, lives, entered = tonumber(l), tonumber(s), tonumber(g), tonumber(gk), 0, tonumber(entered)
end
if not (l and l >= 0 and l <= exact and l % 1 == 0 and s >= 0 and s <= exact and s % 1 == 0 and g > 0 and g <= exact
  and gk > 0 and gk <= g and g % gk == 0 and lives >= 0 and (not entered or entered >= 0 and entered <= exact)) then
  l = false
end
