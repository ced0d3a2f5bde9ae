-- Work that cannot be done now: due again later. Returns 0 if the lease was lost meanwhile.
-- KEYS: event, work lane.  ARGV: event id, token, delay in ms, then fields and values for the event
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or -1) ~= tonumber(ARGV[2]) then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
if ARGV[4] then
  redis.call('HSET', KEYS[1], unpack(ARGV, 4))
end
return 1
