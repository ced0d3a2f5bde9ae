-- The outcome of one attempt: delivered, to be tried again, or a dead letter.
-- KEYS: event, work lane, dead letters, counters
-- ARGV: event id, token, sink, outcome (delivered | retry | dead), delay in ms, delivery (JSON), retention in seconds
-- Returns 1, or 0 if somebody else finished it or (for a retry) holds it now.
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not score or (ARGV[4] == 'retry' and tonumber(score) ~= tonumber(ARGV[2])) then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'delivery:' .. ARGV[3], ARGV[6])
redis.call('HINCRBY', KEYS[4], ARGV[4] .. '|' .. ARGV[3], 1)
if ARGV[4] == 'retry' then
  redis.call('ZADD', KEYS[2], now + ARGV[5], ARGV[1])
  return 1
end
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[4] == 'dead' then
  redis.call('ZADD', KEYS[3], now, ARGV[1] .. '|' .. ARGV[3])
  redis.call('HINCRBY', KEYS[1], 'dead', 1)
end
if redis.call('HINCRBY', KEYS[1], 'open', -1) <= 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[7])
  redis.call('HSET', KEYS[1], 'state', 'done')
  if redis.call('HGET', KEYS[1], 'ephemeral') == '1' and not redis.call('HGET', KEYS[1], 'dead') then
    redis.call('HDEL', KEYS[1], 'body', 'event')
  end
end
return 1
