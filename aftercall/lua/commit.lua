-- An event is normalized: keep it, close its processing, open a delivery for each sink.
-- KEYS: event, work lane "process", counters, wake, then the work lane of each sink
-- ARGV: event id, token, lease in ms, retention in seconds, "1" to keep content only until delivered, event body,
--       then for each sink its name and "1" if the caller delivers at once (leased) or "0" (due now, for anyone)
-- Returns the token of the leased deliveries, or 0 if the lease was lost meanwhile.
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or -1) ~= tonumber(ARGV[2]) then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = now + ARGV[3]
local sinks = #KEYS - 4
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[3], 'processed', 1)
redis.call('HSET', KEYS[1], 'state', 'committed', 'event', ARGV[6], 'open', sinks, 'ephemeral', ARGV[5])
for i = 1, sinks do
  if ARGV[6 + 2 * i] == '1' then
    redis.call('ZADD', KEYS[i + 4], lease, ARGV[1])
  else
    redis.call('ZADD', KEYS[i + 4], now, ARGV[1])
    redis.call('LPUSH', KEYS[4], 1)
    redis.call('LTRIM', KEYS[4], 0, 0)
  end
  redis.call('HSET', KEYS[1], 'delivery:' .. ARGV[5 + 2 * i], '{"state":"open","attempts":[]}')
end
if sinks == 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('HSET', KEYS[1], 'state', 'done')
  if ARGV[5] == '1' then
    redis.call('HDEL', KEYS[1], 'body', 'event')
  end
end
return lease
