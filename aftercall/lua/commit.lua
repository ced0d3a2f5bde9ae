#!lua flags=allow-oom
-- An event is normalized: keep it, close its processing, open a delivery for each sink.
-- KEYS: event, work lane "process", counters, wake, deaths, then for each sink its work lane and its health
-- ARGV: event id, token, lease in ms, retention in seconds, "1" to keep content only until delivered, event body,
--       then for each sink its name and "1" if the caller would deliver at once (leased) or "0" (due now, for anyone)
-- Returns {lease's end, 1 or 0 for each sink: leased to the caller}, or {0} if the lease was lost meanwhile. The same
-- commit once more, when its answer was lost, gets the same answer. A sink that is paused, disabled or behind an open
-- circuit is leased to nobody: its delivery waits.
local sinks = (#KEYS - 5) / 2
local function answer(lease)
  local leased = {lease}
  for i = 1, sinks do
    local score = redis.call('ZSCORE', KEYS[2 * i + 4], ARGV[1])
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
local lease = now + ARGV[3]
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[5], 'process|' .. ARGV[1])
redis.call('HINCRBY', KEYS[3], 'processed', 1)
redis.call('HSET', KEYS[1], 'state', 'committed', 'event', ARGV[6], 'open', sinks, 'ephemeral', ARGV[5],
  'committed_by', ARGV[2], 'lease', lease)
local wake = false
for i = 1, sinks do
  local work, health = KEYS[2 * i + 4], KEYS[2 * i + 5]
  if ARGV[6 + 2 * i] == '1' and redis.call('EXISTS', health) == 1 then
    local known = redis.call('HMGET', health, 'disabled', 'paused', 'probe_at', 'ramp_at')
    if known[1] or known[2] or known[3] or known[4] then
      ARGV[6 + 2 * i] = '0'
    end
  end
  if ARGV[6 + 2 * i] == '1' then
    redis.call('ZADD', work, lease + 0.5, ARGV[1])
  else
    redis.call('ZADD', work, now, ARGV[1])
    wake = true
  end
  redis.call('HSET', KEYS[1], 'delivery:' .. ARGV[5 + 2 * i], '{"state":"open","attempts":[]}')
end
if wake then
  redis.call('LPUSH', KEYS[4], 1)
  redis.call('LTRIM', KEYS[4], 0, 0)
end
if sinks == 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('HSET', KEYS[1], 'state', 'done')
  if ARGV[5] == '1' then
    redis.call('HDEL', KEYS[1], 'body', 'event')
  end
end
return answer(lease)
