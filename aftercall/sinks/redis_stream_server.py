"""What the server does for the sink in one step, and what its refusals mean."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from aftercall.errors import SinkError
from aftercall.redis_client import FAILURES

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

# What a server says of itself when it takes no writes, and what an operator reads. The whole of it may quote an entry.
_WHY = {
    "used memory >": "its memory is full, and it evicts nothing",
    "read only replica": "it is a replica, and read-only",
    "good replicas": "fewer replicas follow it than min-replicas-to-write asks for",
    "persist": "it cannot save to its disk, and takes nothing meanwhile",
    "busy running a script": "a script keeps it busy",
}


def after(entry_id: bytes) -> str:
    """The id that comes next. Here and not in Lua, whose numbers are not exact beyond 2**53."""
    ms, number = map(int, entry_id.split(b"-"))
    return f"{ms}-{number + 1}" if number < 2**64 - 1 else f"{ms + 1}-0"


@asynccontextmanager
async def refusals() -> AsyncIterator[None]:
    try:
        yield
    except (AuthenticationError, NoPermissionError) as error:
        raise SinkError(f"Redis refused: {type(error).__name__}") from None
    except ResponseError as error:
        if "WRONGTYPE" in str(error):
            raise SinkError("the stream's key holds something that is not a stream", permanent=True) from None
        why = next((why for said, why in _WHY.items() if said in str(error)), None)
        raise SinkError(f"Redis refused: {why}" if why else "Redis refused the entry") from None
    except FAILURES as error:
        raise SinkError(f"Redis does not answer ({type(error).__name__})") from None
