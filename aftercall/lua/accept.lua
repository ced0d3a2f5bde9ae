-- Store a webhook, once: its event, its place in the call's order, its work; and wake a worker.
-- KEYS: event, call, events index, work lane "process", counters, wake, the account's calls
-- ARGV: event id, how long to remember the call in seconds, account, call id, type, then the event's fields and values
-- Returns the event's sequence, 0 for a duplicate, or -1 if the call was erased: then nothing is stored. The count of
-- copies is written for a duplicate too, so that a WAITAOF behind it covers the first copy. `state` is what makes an
-- event known, and comes last: a script that fails halfway (a user without the right to one of the commands) is not
-- rolled back, and the webhook must come again.
if redis.call('HEXISTS', KEYS[2], 'erased') == 1 then
  redis.call('HINCRBY', KEYS[5], 'erased|' .. ARGV[3], 1)
  return -1
end
redis.call('HINCRBY', KEYS[1], 'copies', 1)
if redis.call('HEXISTS', KEYS[1], 'state') == 1 then
  redis.call('HINCRBY', KEYS[5], 'duplicate|' .. ARGV[3], 1)
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local sequence = redis.call('HINCRBY', KEYS[2], 'sequence', 1)
redis.call('HSET', KEYS[2], 'event:' .. ARGV[1], ARGV[5], 'accepted:' .. ARGV[5], 1)
redis.call('EXPIRE', KEYS[2], ARGV[2])
if sequence == 1 then
  redis.call('ZADD', KEYS[7], now, ARGV[4])
end
redis.call('HSET', KEYS[1], 'sequence', sequence, 'accepted', now, 'call', KEYS[2], unpack(ARGV, 6))
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('ZADD', KEYS[4], now, ARGV[1])
redis.call('HINCRBY', KEYS[5], 'accepted|' .. ARGV[3], 1)
redis.call('HSET', KEYS[1], 'state', 'accepted')
redis.call('LPUSH', KEYS[6], 1)
redis.call('LTRIM', KEYS[6], 0, 0)
return sequence
