#!lua flags=allow-oom
-- A call is erased: the content of its events and their open work go, a tombstone takes the call's place, and an event
-- tells of it. That one is due when the attempts under way must have ended, so that it is the last that a sink hears.
-- KEYS: call, the account's calls, events index, dead letters, deaths, wake, the erased event, its work lane,
--       then the call's events, then the work lanes
-- ARGV: how many events, "1" for a tombstone for good, how long in seconds else, retention in seconds, the erased
--       event's id, call id, then the number of its fields and values and these, then the events' ids, then
--       the lanes' names and for each the sink whose dead letters it makes
-- Returns 1; 0 if the call was erased before; -2 if it got another event since its events were read.
local events, call = tonumber(ARGV[1]), KEYS[1]
local FIRST_EVENT, FIRST_LANE = 8, 8 + events
local MANY = 500
local fields = tonumber(ARGV[7])
local ids, lanes = 7 + fields, 7 + fields + events
if redis.call('HEXISTS', call, 'erased') == 1 then
  if ARGV[2] == '1' then
    redis.call('PERSIST', call)
  end
  return 0
end
local known = 0
for _, field in ipairs(redis.call('HKEYS', call)) do
  known = known + (string.sub(field, 1, 6) == 'event:' and 1 or 0)
end
if known ~= events then
  return -2
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = now
-- Many at a time: a call of an hour with its turns has thousands of events, and nothing else is done meanwhile.
for i = 1, #KEYS - FIRST_LANE do
  local work, lane, sink = KEYS[FIRST_LANE + i], ARGV[lanes + 2 * i - 1], ARGV[lanes + 2 * i]
  for first = 1, events, MANY do
    local open, letters, died = {}, {}, {}
    for j = first, math.min(first + MANY - 1, events) do
      local id = ARGV[ids + j]
      open[#open + 1], letters[#letters + 1], died[#died + 1] = id, id .. '|' .. sink, lane .. '|' .. id
    end
    for _, score in ipairs(redis.call('ZMSCORE', work, unpack(open))) do
      score = tonumber(score or 0)
      if score % 1 ~= 0 then
        due = math.max(due, math.ceil(score))
      end
    end
    redis.call('ZREM', work, unpack(open))
    redis.call('ZREM', KEYS[4], unpack(letters))
    redis.call('HDEL', KEYS[5], unpack(died))
  end
end
for j = 1, events do
  local event = KEYS[FIRST_EVENT + j]
  if redis.call('EXISTS', event) == 1 then
    redis.call('HDEL', event, 'body', 'event', 'open', 'dead')
    redis.call('HSET', event, 'state', 'erased')
    redis.call('EXPIRE', event, ARGV[4])
  end
end
local sequence = tonumber(redis.call('HGET', call, 'sequence') or 0) + 1
redis.call('DEL', call)
redis.call('HSET', call, 'erased', now, 'sequence', sequence, 'event:' .. ARGV[5], 'call.erased')
if ARGV[2] ~= '1' then
  redis.call('EXPIRE', call, ARGV[3])
end
redis.call('ZREM', KEYS[2], ARGV[6])
redis.call('HSET', KEYS[7], 'sequence', sequence, 'accepted', now, 'call', call, unpack(ARGV, 8, 7 + fields))
redis.call('HSET', KEYS[7], 'state', 'accepted')
redis.call('ZADD', KEYS[3], now, ARGV[5])
redis.call('ZADD', KEYS[8], due, ARGV[5])
redis.call('LPUSH', KEYS[6], 1)
redis.call('LTRIM', KEYS[6], 0, 0)
return 1
