-- slidingwindow.lua: a part of scripts: read the state v of a sliding window, "start:previous:current:window".
--
-- Returns  locals: s start of the window in microseconds, pr units of the window before, cu of this one, g the
--          window as text. s is nil if v is no sliding window's state
-- Writes   nothing
local s, pr, cu, g = match(v, '^(%d+):(%d+):(%d+):(%d+)$')
if s then
  s, pr, cu = tonumber(s), tonumber(pr), tonumber(cu)
  if s > exact or pr > exact or cu > exact or #g > 15 or tonumber(g) < 1000 then s = nil end
end
