-- A delivery is made again: due now, and its schedule begins anew. One that waits for its next attempt is brought forward,
-- one under way is left alone, so that a manual and an automatic attempt never both run.
-- KEYS: event, work lane, dead letters, wake
-- ARGV: event id, sink, delivery as it was read (JSON; empty: none), delivery from now on (JSON), the field whose content
--       it takes (body | event), "1" to restart the fetching, "1" for dead letters only
-- Returns 1 due now; 2 brought forward; 3 under way; 0 no dead letter (any more); -1 its content is not stored;
-- -2 changed since it was read.
local field, letter = 'delivery:' .. ARGV[2], ARGV[1] .. '|' .. ARGV[2]
local dead = redis.call('ZSCORE', KEYS[3], letter)
if ARGV[7] == '1' and not dead then
  return 0
end
if redis.call('HEXISTS', KEYS[1], ARGV[5]) == 0 then
  return -1
end
if (redis.call('HGET', KEYS[1], field) or '') ~= ARGV[3] then
  return -2
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
if score and tonumber(score) % 1 ~= 0 and tonumber(score) > now then
  return 3
end
redis.call('HSET', KEYS[1], field, ARGV[4])
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('LPUSH', KEYS[4], 1)
redis.call('LTRIM', KEYS[4], 0, 0)
if score then
  return 2
end
redis.call('PERSIST', KEYS[1])
redis.call('HINCRBY', KEYS[1], 'open', 1)
if dead then
  redis.call('ZREM', KEYS[3], letter)
  if redis.call('HINCRBY', KEYS[1], 'dead', -1) <= 0 then
    redis.call('HDEL', KEYS[1], 'dead')
  end
end
if ARGV[6] == '1' then
  redis.call('HSET', KEYS[1], 'state', 'accepted', 'accepted', now, 'fetches', 0)
  local of = redis.call('HMGET', KEYS[1], 'call', 'type')
  if of[1] and of[2] and redis.call('EXISTS', of[1]) == 1 then
    redis.call('HSET', of[1], 'accepted:' .. of[2], 1) -- taken back when it died
  end
else
  redis.call('HSET', KEYS[1], 'state', 'committed')
end
return 1
