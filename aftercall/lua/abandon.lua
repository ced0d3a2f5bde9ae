#!lua flags=allow-oom
-- A call's end never came: there is nothing to settle. What its provider must not keep goes; a late end starts anew.
-- KEYS: call, its settled event, the settled event's work lane, deaths
-- ARGV: its id, token, lane's name, in how many ms it settles if its end came in the meantime
-- Returns 0 if the lease was lost meanwhile.
if tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or -1) ~= tonumber(ARGV[2]) then
  return 0
end
redis.call('HDEL', KEYS[4], ARGV[3] .. '|' .. ARGV[1])
if redis.call('HEXISTS', KEYS[1], 'needs') == 1 then
  local time = redis.call('TIME')
  redis.call('ZADD', KEYS[3], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4], ARGV[1])
  return 1
end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('HDEL', KEYS[1], 'settle', 'event:' .. ARGV[1])
local prefix = string.sub(KEYS[2], 1, -#ARGV[1] - 1)
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if string.sub(field, 1, 6) == 'event:' then
    local event = prefix .. string.sub(field, 7)
    local of = redis.call('HMGET', event, 'state', 'dead')
    if of[1] == 'done' and not of[2] then
      redis.call('HDEL', event, 'body', 'event')
    end
  end
end
return 1
