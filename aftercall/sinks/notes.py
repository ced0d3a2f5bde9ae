"""What a sink wrote for which call: notes in its memory that let it know an event again, and delete what it wrote.

They are forgotten after a week, as all notes are. Whatever was written before can then be neither known nor deleted.
"""

import hashlib
from collections.abc import AsyncIterator
from itertools import count

from aftercall.call import Call
from aftercall.event import CallEvent
from aftercall.sinks.base import Memory


def call_key(call: Call) -> str:
    """A name for notes about a call; digested, for a provider may put anything into an id."""
    return "call:" + hashlib.sha256("\0".join((call.provider, call.account, call.id)).encode()).hexdigest()[:32]


async def written(memory: Memory, event: CallEvent) -> str | None:
    """What was written for this very event before."""
    return await memory.get(f"event:{event.id}")


async def note(memory: Memory, event: CallEvent, where: str) -> None:
    """Remember what was written for an event. The notes of a call have numbers: several may be made at once.

    The event's own comes last: an attempt that is cut off between them may write it twice, and both are erased. The
    other way round it would be known, and stay.
    """
    for number in count():
        key = f"{call_key(event.data.call)}:{number}"
        if await memory.add(key, where) or await memory.get(key) == where:
            break
    await memory.set(f"event:{event.id}", where)


async def notes_of(memory: Memory, call: Call) -> AsyncIterator[str]:
    """What was written for a call, the newest first. Each is forgotten once the caller asks for the next."""
    found: list[tuple[str, str]] = []
    while where := await memory.get(key := f"{call_key(call)}:{len(found)}"):
        found.append((key, where))
    for key, where in reversed(found):
        yield where
        await memory.delete(key)
