-- A dead letter gets another life: due now, and its schedule begins anew.
-- KEYS: event, work lane, dead letters, wake
-- ARGV: event id, sink, delivery (JSON), the field whose content it takes (body | event), "1" to restart the fetching
-- Returns 1; 0 if it is no dead letter (any more); -1 if its content is gone, and it stays where it is.
local letter = ARGV[1] .. '|' .. ARGV[2]
if not redis.call('ZSCORE', KEYS[3], letter) then
  return 0
end
if redis.call('HEXISTS', KEYS[1], ARGV[4]) == 0 then
  return -1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREM', KEYS[3], letter)
redis.call('PERSIST', KEYS[1])
redis.call('HSET', KEYS[1], 'delivery:' .. ARGV[2], ARGV[3])
redis.call('HINCRBY', KEYS[1], 'open', 1)
if redis.call('HINCRBY', KEYS[1], 'dead', -1) <= 0 then
  redis.call('HDEL', KEYS[1], 'dead')
end
if ARGV[5] == '1' then
  redis.call('HSET', KEYS[1], 'state', 'accepted', 'accepted', now, 'fetches', 0)
else
  redis.call('HSET', KEYS[1], 'state', 'committed')
end
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('LPUSH', KEYS[4], 1)
redis.call('LTRIM', KEYS[4], 0, 0)
return 1
