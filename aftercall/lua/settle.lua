-- A call is to be settled: what the ledger knows of it as a whole. Its settled event takes its sequence now, once.
-- KEYS: call, its settled event
-- Returns {sequence, {field, value, …} of the call}.
local sequence = redis.call('HGET', KEYS[2], 'sequence')
if not sequence then
  sequence = redis.call('HINCRBY', KEYS[1], 'sequence', 1)
  redis.call('HSET', KEYS[2], 'sequence', sequence)
end
return {tonumber(sequence), redis.call('HGETALL', KEYS[1])}
