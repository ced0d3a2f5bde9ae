#!lua flags=allow-oom
-- An event is normalized: keep it, close its processing, open a delivery for each sink, and see when its call settles.
-- KEYS: event, its work lane, counters, wake, deaths, call, work lane "settle", the call's settled event, events index,
--       then for each sink its work lane and its health
-- ARGV: event id, token, lane's name, lease in ms, retention in seconds, event body, type, "1" if the provider must not
--       keep the content, storage, "1" if the record was had, "1" if the call is over, what it awaits then (types, with
--       spaces between), how long to wait for that in ms, how long a call may last in ms, the settled event's id, its
--       dedupe key, then for each sink its name and "1" if the caller would deliver at once (leased) or "0" (due now,
--       for anyone)
-- Returns {lease's end, 1 or 0 for each sink: leased to the caller}, or {0} if the lease was lost meanwhile. The same
-- commit once more, when its answer was lost, gets the same answer. A sink that is paused, disabled or behind an open
-- circuit is leased to nobody: its delivery waits.
local FIRST_KEY, FIRST_SINK = 9, 16
local sinks = (#KEYS - FIRST_KEY) / 2
local call = KEYS[6]
local function answer(lease)
  local leased = {lease}
  for i = 1, sinks do
    local score = redis.call('ZSCORE', KEYS[FIRST_KEY + 2 * i - 1], ARGV[1])
    leased[i + 1] = tonumber(score or -1) == lease + 0.5 and 1 or 0
  end
  return leased
end

if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or -1) ~= tonumber(ARGV[2]) then
  local known = redis.call('HMGET', KEYS[1], 'committed_by', 'lease')
  if known[1] == ARGV[2] then
    return answer(tonumber(known[2]))
  end
  return {0}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = now + ARGV[4]
local wake = false
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[5], ARGV[3] .. '|' .. ARGV[1])
redis.call('HINCRBY', KEYS[3], 'processed', 1)
redis.call('HSET', KEYS[1], 'state', 'committed', 'event', ARGV[6], 'open', sinks, 'committed_by', ARGV[2], 'lease', lease)
for i = 1, sinks do
  local work, health = KEYS[FIRST_KEY + 2 * i - 1], KEYS[FIRST_KEY + 2 * i]
  local name, at_once = ARGV[FIRST_SINK + 2 * i - 1], ARGV[FIRST_SINK + 2 * i] == '1'
  if at_once and redis.call('EXISTS', health) == 1 then
    local known = redis.call('HMGET', health, 'disabled', 'paused', 'probe_at', 'ramp_at')
    at_once = not (known[1] or known[2] or known[3] or known[4])
  end
  redis.call('ZADD', work, at_once and lease + 0.5 or now, ARGV[1])
  wake = wake or not at_once
  redis.call('HSET', KEYS[1], 'delivery:' .. name, '{"state":"open","attempts":[]}')
end

-- The call's settled event waits in a lane of its own until `due`; what comes later may bring it forward.
local function settle_by(due)
  local score = tonumber(redis.call('ZSCORE', KEYS[7], ARGV[15]) or -1)
  if score >= 0 then
    if score % 1 == 0 and score > due then
      redis.call('ZADD', KEYS[7], due, ARGV[15])
    end
  elseif redis.call('HEXISTS', KEYS[8], 'state') == 0 then
    local of = redis.call('HMGET', KEYS[1], 'provider', 'account', 'call_id', 'received_at')
    redis.call('HSET', KEYS[8], 'provider', of[1], 'account', of[2], 'call_id', of[3], 'received_at', of[4], 'call', call,
      'type', 'call.settled', 'dedupe_key', ARGV[16], 'via', 'settle', 'body', '', 'accepted', now, 'state', 'waiting')
    redis.call('ZADD', KEYS[7], due, ARGV[15])
    redis.call('HSET', call, 'settle', 'due', 'event:' .. ARGV[15], 'call.settled')
  end
  wake = wake or due == now
end

if ARGV[8] == '1' and ARGV[7] ~= 'call.erased' then
  redis.call('HSET', call, 'ephemeral', 1, 'storage', ARGV[9])
end
if ARGV[7] == 'call.settled' then
  redis.call('HSET', call, 'settle', 'done')
  redis.call('ZADD', KEYS[9], now, ARGV[1])
elseif ARGV[7] ~= 'call.erased' then
  redis.call('HSET', call, 'has:' .. ARGV[7], 1)
  if ARGV[10] == '1' then
    redis.call('HSET', call, 'fetched', 1)
  end
  local known = redis.call('HMGET', call, 'needs', 'ephemeral', 'settle')
  local needs = known[1]
  if ARGV[11] == '1' then
    needs = needs or ' call.ended '
    for word in string.gmatch(ARGV[12], '%S+') do
      if not string.find(needs, ' ' .. word .. ' ', 1, true) then
        needs = needs .. word .. ' '
      end
    end
    redis.call('HSET', call, 'needs', needs)
  end
  if known[3] ~= 'done' and needs then
    local missing = false
    for word in string.gmatch(needs, '%S+') do
      missing = missing or redis.call('HEXISTS', call, 'has:' .. word) == 0
    end
    settle_by(missing and now + ARGV[13] or now)
  elseif known[3] ~= 'done' and known[2] then
    settle_by(now + ARGV[14]) -- or its content would be kept for a call whose end never comes
  end
end
if wake then
  redis.call('LPUSH', KEYS[4], 1)
  redis.call('LTRIM', KEYS[4], 0, 0)
end
if sinks == 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[5])
  redis.call('HSET', KEYS[1], 'state', 'done')
end

-- What the provider must not keep goes when the call is settled and its events are delivered, each by itself; and what is
-- there already when an event says it after that.
local state = (sinks == 0 or ARGV[7] == 'call.settled' or ARGV[8] == '1') and redis.call('HMGET', call, 'ephemeral', 'settle') or {}
if state[1] and state[2] ~= 'due' then
  local prefix = string.sub(KEYS[1], 1, -#ARGV[1] - 1)
  for _, field in ipairs(redis.call('HKEYS', call)) do
    if string.sub(field, 1, 6) == 'event:' then
      local event = prefix .. string.sub(field, 7)
      local of = redis.call('HMGET', event, 'state', 'dead')
      if of[1] == 'done' and not of[2] then
        redis.call('HDEL', event, 'body', 'event')
      end
    end
  end
end
return answer(lease)
