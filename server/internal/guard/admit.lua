-- KEYS[1]  holds the theoretical arrival time (TAT): when the bucket will be full again
-- KEYS[2…] remember what may be used once
-- ARGV     rate per second, burst, cost, and for each of KEYS[2…] how long it is remembered, in milliseconds
-- Returns  0 if admitted, -i if the i-th of KEYS[2…] is remembered already, else the microseconds to wait.
-- All times are whole microseconds of the server's clock: below 2^53, so doubles hold them exactly.
local replayed = 0
for i = 2, #KEYS do
  if not redis.call('SET', KEYS[i], 1, 'NX', 'PX', ARGV[i + 2]) and replayed == 0 then
    replayed = 1 - i
  end
end
if replayed < 0 then
  return replayed
end

local rate, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local interval = math.ceil(1000000 / rate) -- rounded up: never more than the rate
local full = burst * interval
-- A TAT beyond a full bucket results only from a clock that was set back or a limit that was
-- lowered. It must not lock the caller out for longer than an empty bucket takes to fill.
local tat = tonumber(redis.call('GET', KEYS[1]) or now)
tat = math.min(math.max(tat, now), now + full)

local next = tat + cost * interval
local wait = next - full - now
if wait > 0 then
  return wait
end
redis.call('SET', KEYS[1], string.format('%.0f', next), 'PX', math.ceil((next - now) / 1000))
return 0
