-- A call is to be settled: what the ledger knows of it as a whole. Its settled event takes its sequence now, once; there
-- is none for a call whose end nobody told.
-- KEYS: call, its settled event
-- Returns {sequence or 0, {field, value, …} of the call}.
local sequence = redis.call('HGET', KEYS[2], 'sequence') or 0
if sequence == 0 and redis.call('HEXISTS', KEYS[1], 'needs') == 1 then
  sequence = redis.call('HINCRBY', KEYS[1], 'sequence', 1)
  redis.call('HSET', KEYS[2], 'sequence', sequence)
end
return {tonumber(sequence), redis.call('HGETALL', KEYS[1])}
