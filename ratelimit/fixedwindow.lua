-- fixedwindow.lua: a part of scripts: read the state v of a fixed window, "start:used:window".
--
-- Returns  locals: s start of the window in microseconds, u units used, g the window as text. s is nil if v is no
--          fixed window's state
-- Writes   nothing
local s, u, g = match(v, '^(%d+):(%d+):(%d+)$')
if s then
  s, u = tonumber(s), tonumber(u)
  if s > exact or u > exact or #g > 15 or g == '0' then s = nil end
end
