-- Adds one revocation to the lists, if it is the next one.
-- KEYS     list (hash), events (stream), rebuilding (string), witness (hash)
-- ARGV     seq, prev, field, ends, field of the agent that is resumed or "", channel, number of the incarnation,
--          then names and values of the event
-- Returns  1 added, 0 added before, -1 the lists are not what they should be, -2 they are being rebuilt,
--          -4 a later incarnation of the ledger is known
-- Nothing is written before everything is read. Numbers and milliseconds are below 2^53.
local list = KEYS[1]

local function is(key, type)
  local found = redis.call('TYPE', key).ok
  return found == type or found == 'none'
end
if not is(list, 'hash') or not is(KEYS[2], 'stream') then
  return -1
end

if redis.call('TYPE', KEYS[4]).ok == 'hash' and (tonumber(redis.call('HGET', KEYS[4], 'number') or '') or 0) > tonumber(ARGV[7]) then
  return -4
end

local seq, prev = tonumber(ARGV[1]), tonumber(ARGV[2])
local head = tonumber(redis.call('HGET', list, 'head') or '0') -- no list: nothing is published yet
if not head then
  return -1
end
if head >= seq then
  return 0
end
if head ~= prev then
  return -1
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  return -2
end

-- read returns number and end of a field, 0 as its number if it is not there, or nil if it is no
-- mark.
local function read(field)
  local mark = redis.call('HGET', list, field)
  if not mark then
    return 0, 0
  end
  local s, e = string.match(mark, '^(%d+):(%d+)$')
  return tonumber(s), tonumber(e)
end

local field, ends, resumed = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local suspended
if resumed ~= '' then
  -- The suspension becomes a cut-off with the suspension's own number.
  suspended = field
  local s = read(suspended)
  if not s then
    return -1
  end
  seq, field = s, resumed
end
local s, e = read(field)
if not s then
  return -1
end

if suspended then
  redis.call('HDEL', list, suspended)
end
if seq > 0 then
  if s > 0 then -- the higher number and the longer life
    seq = math.max(s, seq)
    if e == 0 or ends == 0 then
      ends = 0
    else
      ends = math.max(e, ends)
    end
  end
  redis.call('HSET', list, field, string.format('%.0f:%.0f', seq, ends))
end
redis.call('HSET', list, 'head', ARGV[1])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', '10000', '*', unpack(ARGV, 8))
redis.call('PUBLISH', ARGV[6], ARGV[1])
return 1
