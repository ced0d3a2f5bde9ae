#!lua flags=allow-oom
-- Take due work under a lease: its score moves to the lease's end, when it is due again if nobody finished it. The score
-- of leased work ends in .5, that of waiting work in .0, so that a lease which ran out can be told from a wait.
-- KEYS: deaths, the caller's last claim, then for each lane its work, its token bucket and its sink's health
-- ARGV: lease in ms, the request's number, then for each lane its name, how many to take and its rate (a second; 0: none)
-- Returns {lease's end, now, lane 1, lane 2, …}, each lane as {name, 1 if its circuit is probed, id, deaths, …}.
-- Runs also when memory is full: otherwise the work that fills it could never be finished.
-- A request that comes again, its answer lost, gets the same answer: else what it took would lie idle for a whole lease.
local RAMP_PER_S, RAMP_ENDS_PER_S = 8, 1024 -- after a circuit closes, its lane starts at this rate and doubles it each second
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = now + ARGV[1]
local last = redis.call('HMGET', KEYS[2], 'request', 'answer')
if last[1] == ARGV[2] then
  return cmsgpack.unpack(last[2])
end
local someone_died = redis.call('EXISTS', KEYS[1]) == 1
local claimed = {lease, now}
local some = false

-- How many may be taken from a sink's lane, at which rate, and whether as the probe of its open circuit.
local function allowed(health, count, rate)
  local known = redis.call('HMGET', health, 'disabled', 'paused', 'probe_at', 'ramp_at')
  if known[1] or known[2] then
    return 0, rate, 0
  end
  if known[3] then
    if now < tonumber(known[3]) then
      return 0, rate, 0
    end
    return math.min(count, 1), rate, 1
  end
  if known[4] then
    local ramp = RAMP_PER_S * 2 ^ ((now - known[4]) / 1000)
    if ramp < RAMP_ENDS_PER_S then
      return count, rate > 0 and math.min(rate, ramp) or ramp, 0
    end
    redis.call('HDEL', health, 'ramp_at')
  end
  return count, rate, 0
end

for i = 1, (#KEYS - 2) / 3 do
  local work, bucket, health = KEYS[3 * i], KEYS[3 * i + 1], KEYS[3 * i + 2]
  local lane = ARGV[3 * i]
  local count, rate, probe = allowed(health, tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2]))
  local tokens = count
  if rate > 0 and count > 0 then
    local full = math.max(1, rate)
    local known = redis.call('HMGET', bucket, 'tokens', 'at')
    tokens = math.min(full, (known[1] or full) + (now - (known[2] or now)) * rate / 1000)
    count = math.min(count, math.floor(tokens))
  end
  local taken = {lane, probe}
  local due = {}
  if count > 0 then
    due = redis.call('ZRANGEBYSCORE', work, '-inf', now, 'WITHSCORES', 'LIMIT', 0, count)
  end
  for j = 1, #due, 2 do
    local id, deaths = due[j], 0
    if tonumber(due[j + 1]) % 1 ~= 0 then
      deaths = redis.call('HINCRBY', KEYS[1], lane .. '|' .. id, 1)
    elseif someone_died then
      deaths = tonumber(redis.call('HGET', KEYS[1], lane .. '|' .. id) or 0)
    end
    redis.call('ZADD', work, 'XX', lease + 0.5, id)
    taken[#taken + 1] = id
    taken[#taken + 1] = deaths
  end
  if #due > 0 then
    some = true
    if rate > 0 then
      redis.call('HSET', bucket, 'tokens', tostring(tokens - #due / 2), 'at', now)
      redis.call('PEXPIRE', bucket, math.ceil(2000 * math.max(1, rate) / rate))
    end
    if probe == 1 then
      redis.call('HSET', health, 'probe_at', lease, 'probe', due[1])
    end
  end
  claimed[i + 2] = taken
end
if some then
  redis.call('HSET', KEYS[2], 'request', ARGV[2], 'answer', cmsgpack.pack(claimed))
  redis.call('PEXPIRE', KEYS[2], ARGV[1])
end
return claimed
