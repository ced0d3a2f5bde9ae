-- Take due work under a lease: its score moves to the lease's end, when it is due again if nobody finished it.
-- KEYS: work lanes.  ARGV: lease in ms, then how many to take from each lane
-- Returns {lease's end, now, {event ids of lane 1}, {of lane 2}, …}. The lease's end is the token that finishes it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = now + ARGV[1]
local claimed = {lease, now}
for i, lane in ipairs(KEYS) do
  local ids = redis.call('ZRANGEBYSCORE', lane, '-inf', now, 'LIMIT', 0, ARGV[i + 1])
  for _, id in ipairs(ids) do
    redis.call('ZADD', lane, 'XX', lease, id)
  end
  claimed[i + 2] = ids
end
return claimed
