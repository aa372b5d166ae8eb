-- Puts the rebuilt list in the place of the old one. The rebuilding ends in any case.
-- KEYS     list, events, rebuilding, the new list, witness
-- ARGV     token of the rebuilder, number up to which the new list is complete, its fields, channel, number of the incarnation
-- Returns  1, -1 the new list has lost something, -3 the old list is further, -4 a later incarnation of the ledger is known
local list, new = KEYS[1], KEYS[4]
local result = 1
if redis.call('HLEN', new) ~= tonumber(ARGV[3]) then
  result = -1
end
if redis.call('TYPE', list).ok == 'hash' then
  local head = tonumber(redis.call('HGET', list, 'head') or '0')
  if head and head > tonumber(ARGV[2]) then
    result = -3
  end
end
if redis.call('TYPE', KEYS[5]).ok == 'hash' and (tonumber(redis.call('HGET', KEYS[5], 'number') or '') or 0) > tonumber(ARGV[5]) then
  result = -4
end

if result == 1 then
  redis.call('UNLINK', list) -- RENAME would free it within this call
  redis.call('RENAME', new, list)
  redis.call('PERSIST', list)
  local events = redis.call('TYPE', KEYS[2]).ok
  if events ~= 'stream' and events ~= 'none' then
    redis.call('UNLINK', KEYS[2])
  end
else
  redis.call('UNLINK', new)
end
if redis.call('TYPE', KEYS[3]).ok == 'string' and redis.call('GET', KEYS[3]) == ARGV[1] then
  redis.call('DEL', KEYS[3])
end
if result == 1 then
  redis.call('PUBLISH', ARGV[4], ARGV[2])
end
return result
