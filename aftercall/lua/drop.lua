#!lua flags=allow-oom
-- A dead letter is given up for good. What its provider must not keep goes with the last of them.
-- KEYS: event, dead letters, counters.  ARGV: event id, sink
-- Returns 1, or 0 if it is no dead letter (any more).
if redis.call('ZREM', KEYS[2], ARGV[1] .. '|' .. ARGV[2]) == 0 then
  return 0
end
redis.call('HINCRBY', KEYS[3], 'dropped|' .. ARGV[2], 1)
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 1
end
local left = redis.call('HINCRBY', KEYS[1], 'dead', -1)
if left <= 0 then
  redis.call('HDEL', KEYS[1], 'dead')
  local of = redis.call('HMGET', KEYS[1], 'state', 'call')
  local call = of[2] and redis.call('HMGET', of[2], 'ephemeral', 'settle') or {}
  if call[1] and call[2] ~= 'due' and of[1] == 'done' then
    redis.call('HDEL', KEYS[1], 'body', 'event')
  end
end
return 1
