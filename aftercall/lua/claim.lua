-- Take due work under a lease: its score moves to the lease's end, when it is due again if nobody finished it.
-- KEYS: for each lane its work and its bucket.  ARGV: lease in ms, then for each lane how many to take and its rate
-- (a second; 0: none). A rate is a token bucket that all workers share; it holds one second's worth, at least 1.
-- Returns {lease's end, now, {event ids of lane 1}, {of lane 2}, …}. The lease's end is the token that finishes it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = now + ARGV[1]
local claimed = {lease, now}
for i = 1, #KEYS / 2 do
  local lane, bucket = KEYS[2 * i - 1], KEYS[2 * i]
  local count, rate = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local tokens = count
  if rate > 0 then
    local full = math.max(1, rate)
    local known = redis.call('HMGET', bucket, 'tokens', 'at')
    tokens = math.min(full, (known[1] or full) + (now - (known[2] or now)) * rate / 1000)
    count = math.min(count, math.floor(tokens))
  end
  local ids = {}
  if count > 0 then
    ids = redis.call('ZRANGEBYSCORE', lane, '-inf', now, 'LIMIT', 0, count)
  end
  for _, id in ipairs(ids) do
    redis.call('ZADD', lane, 'XX', lease, id)
  end
  if rate > 0 and #ids > 0 then
    redis.call('HSET', bucket, 'tokens', tostring(tokens - #ids), 'at', now)
    redis.call('PEXPIRE', bucket, math.ceil(2000 * math.max(1, rate) / rate))
  end
  claimed[i + 2] = ids
end
return claimed
