"""What the server does for the sink in one step: adding an entry once, and looking for a call's entries."""

ADD_ONCE = """
if redis.call('EXISTS', KEYS[2]) == 0 then
  -- The marker comes last: a script that fails is not rolled back, and an event that was refused must come again.
  local added = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))
  redis.call('SET', KEYS[2], 1, 'EX', 86400)
  return added
end
"""

# Entry by entry where they are: they are long, and few of them are wanted. Whatever others write there does no harm.
# Returns the id of the last one looked at, or nothing.
ERASE = """
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
for _, entry in ipairs(entries) do
  local of = {}
  for i = 1, #entry[2], 2 do
    of[entry[2][i]] = entry[2][i + 1]
  end
  local ours = of.subject == ARGV[3]
    and (of.source == ARGV[4] or of.event and string.find(of.event, '"source":"' .. ARGV[4] .. '"', 1, true))
  if ours and of.type ~= 'call.erased' then
    redis.call('XDEL', KEYS[1], entry[1])
  end
end
return #entries > 0 and entries[#entries][1]
"""


def after(entry_id: bytes) -> str:
    """The id that comes next. Here and not in Lua, whose numbers are not exact beyond 2**53."""
    ms, number = map(int, entry_id.split(b"-"))
    return f"{ms}-{number + 1}" if number < 2**64 - 1 else f"{ms + 1}-0"
