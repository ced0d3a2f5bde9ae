#!lua flags=allow-oom
-- The outcome of one attempt: delivered, to be tried again, or a dead letter; and what it tells of the sink's health.
-- KEYS: event, work lane, dead letters, counters, deaths, the sink's health
-- ARGV: event id, token, sink, lane's name, outcome (delivered | retry | dead), delay in ms, delivery (JSON),
--       retention in seconds, health (ok | failed | gone | unchanged), ms since the attempt began, reason if gone
-- Returns {1, what changed: opened | closed | disabled | ""}; {0, ""} if somebody else finished it or holds it now.
-- That something was delivered is true also when the lease ran out meanwhile; everything else only its holder may say.
local FAILURES, LASTING_MS = 10, 2000 -- so many in a row, for at least so long, open the circuit
local PAUSE_MS, LONGEST_PAUSE_MS = 1000, 30000 -- until the first probe; doubled by each that fails
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not score then
  return {0, ''}
end
if tonumber(score) ~= tonumber(ARGV[2]) then
  local replayed = '"replayed":true' -- since: that is another delivery, and this one was over
  local stored = redis.call('HGET', KEYS[1], 'delivery:' .. ARGV[3]) or ''
  local renewed = string.find(stored, replayed, 1, true) and not string.find(ARGV[7], replayed, 1, true)
  if ARGV[5] ~= 'delivered' or renewed then
    return {0, ''}
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function open_circuit(health)
  redis.call('HSET', health, 'opened', now, 'pause', PAUSE_MS, 'probe_at', now + PAUSE_MS)
  redis.call('HDEL', health, 'failures', 'since', 'ramp_at')
end

local function judge(health, verdict)
  local known = redis.call('HMGET', health, 'failures', 'since', 'probe_at', 'pause', 'probe')
  local failures, since, open, pause = known[1], known[2], known[3], known[4]
  local probed = open and known[5] == ARGV[1]
  if verdict == 'gone' then
    redis.call('HSET', health, 'disabled', now, 'reason', ARGV[11])
    return 'disabled'
  end
  if open then
    if verdict == 'ok' or (probed and ARGV[5] ~= 'retry') then
      redis.call('HDEL', health, 'opened', 'pause', 'probe_at', 'probe', 'failures', 'since')
      redis.call('HSET', health, 'ramp_at', now)
      return 'closed'
    end
    if probed then
      pause = math.min(2 * pause, LONGEST_PAUSE_MS)
      redis.call('HSET', health, 'pause', pause, 'probe_at', now + pause)
      redis.call('HDEL', health, 'probe')
    end
  elseif verdict == 'ok' then
    if failures then
      redis.call('HDEL', health, 'failures', 'since')
    end
  elseif verdict == 'failed' then
    since = since or now - ARGV[10]
    redis.call('HSET', health, 'since', since)
    if redis.call('HINCRBY', health, 'failures', 1) >= FAILURES and now - since >= LASTING_MS then
      open_circuit(health)
      return 'opened'
    end
  end
  return ''
end

local changed = judge(KEYS[6], ARGV[9])
redis.call('HDEL', KEYS[5], ARGV[4] .. '|' .. ARGV[1])
redis.call('HSET', KEYS[1], 'delivery:' .. ARGV[3], ARGV[7])
redis.call('HINCRBY', KEYS[4], ARGV[5] .. '|' .. ARGV[3], 1)
if ARGV[5] == 'retry' then
  redis.call('ZADD', KEYS[2], now + ARGV[6], ARGV[1])
  return {1, changed}
end
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[5] == 'dead' then
  redis.call('ZADD', KEYS[3], now, ARGV[1] .. '|' .. ARGV[3])
  redis.call('HINCRBY', KEYS[1], 'dead', 1)
  if ARGV[3] == '@process' then -- it was never an event: reconciling may find it again
    local of = redis.call('HMGET', KEYS[1], 'call', 'type')
    if of[1] and of[2] then
      redis.call('HDEL', of[1], 'accepted:' .. of[2])
    end
  end
end
if redis.call('HINCRBY', KEYS[1], 'open', -1) <= 0 then
  redis.call('EXPIRE', KEYS[1], ARGV[8])
  redis.call('HSET', KEYS[1], 'state', 'done')
  local of = redis.call('HMGET', KEYS[1], 'dead', 'call')
  local call = of[2] and redis.call('HMGET', of[2], 'ephemeral', 'settle') or {}
  if call[1] and call[2] ~= 'due' and not of[1] then
    redis.call('HDEL', KEYS[1], 'body', 'event')
  end
end
return {1, changed}
