-- KEYS: the nonce of this period and of the one before. ARGV: a fresh nonce, and how long it is kept in
-- milliseconds. Returns the nonces that are accepted, this period's first.
redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
local now, before = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if before then
	return {now, before}
end
return {now}
