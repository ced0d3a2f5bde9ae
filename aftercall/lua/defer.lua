#!lua flags=allow-oom
-- Work that cannot be done now: due again later. Returns 0 if the lease was lost meanwhile.
-- KEYS: event, work lane, deaths.  ARGV: event id, token, lane's name, delay in ms, "1" if it was not even begun,
-- then fields and values for the event
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or -1) ~= tonumber(ARGV[2]) then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[1])
if ARGV[5] ~= '1' then
  redis.call('HDEL', KEYS[3], ARGV[3] .. '|' .. ARGV[1])
end
if ARGV[6] then
  redis.call('HSET', KEYS[1], unpack(ARGV, 6))
end
return 1
