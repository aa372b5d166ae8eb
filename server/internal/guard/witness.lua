-- Remembers how far a ledger has come, unless what is remembered is of a later incarnation or further.
-- KEYS     witness (hash)
-- ARGV     number and id of the incarnation, number and leaf of the newest entry
-- Returns  1 remembered, 0 not
local known = redis.call('HMGET', KEYS[1], 'number', 'id', 'seq')
local number, seq = tonumber(known[1] or ''), tonumber(known[3] or '')
if number and seq then
  if number > tonumber(ARGV[1]) then
    return 0
  end
  if number == tonumber(ARGV[1]) and (known[2] ~= ARGV[2] or seq > tonumber(ARGV[3])) then
    return 0
  end
end
redis.call('HSET', KEYS[1], 'number', ARGV[1], 'id', ARGV[2], 'seq', ARGV[3], 'leaf', ARGV[4])
return 1
