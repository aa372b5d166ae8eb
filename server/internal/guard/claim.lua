-- Makes other rebuilders and publishers wait, or extends that.
-- KEYS     rebuilding (string)
-- ARGV     token of the rebuilder, milliseconds
-- Returns  1, or 0 if another one rebuilds
-- A value that cannot be a claim, because it never ends or lasts too long, does not count.
local most = tonumber(ARGV[2])
if redis.call('TYPE', KEYS[1]).ok == 'string' and redis.call('GET', KEYS[1]) ~= ARGV[1] then
  local left = redis.call('PTTL', KEYS[1])
  if left > 0 and left <= most then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', most)
return 1
