"""What a sink wrote for which call: notes in its memory that let it know an event again, and delete what it wrote.

They are forgotten after a week, as all notes are. Whatever was written before can then be neither known nor deleted.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

from aftercall.call import Call
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import Memory

CLAIM_S = 60.0  # how long an attempt that died may keep others waiting; no attempt takes as long


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
    name = call_key(event.data.call)
    for number in count(int(await memory.get(f"{name}:last") or 0)):  # of a call's thousand turns each has a note
        key = f"{name}:{number}"
        if await memory.add(key, where) or await memory.get(key) == where:
            break
    await memory.set(f"{name}:last", str(number))
    await memory.set(f"event:{event.id}", where)


async def notes_of(memory: Memory, call: Call) -> AsyncIterator[str]:
    """What was written for a call, the newest first. Each is forgotten once the caller asks for the next."""
    name, found = call_key(call), list[tuple[str, str]]()
    last = int(await memory.get(f"{name}:last") or 0)  # the first of them may be forgotten already
    for number in count():
        where = await memory.get(key := f"{name}:{number}")
        if where:
            found.append((key, where))
        elif number >= last:
            break
    for key, where in reversed(found):
        yield where
        await memory.delete(key)
    await memory.delete(f"{name}:last")


@asynccontextmanager
async def alone(memory: Memory, what: str, event: CallEvent) -> AsyncIterator[None]:
    """While one delivery writes it, those of other events are told to come again.

    An attempt with this very event that was cut off does not stand in its own way.
    """
    claim = f"{what} is being written"
    if not await memory.add(claim, event.id, for_s=CLAIM_S):
        if await memory.get(claim) != event.id:
            raise SinkError("another event of the call is being written", retry_after=1.0)
        await memory.set(claim, event.id, for_s=CLAIM_S)
    try:
        yield
    finally:
        await memory.delete(claim)
