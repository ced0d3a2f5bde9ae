import asyncio

from aftercall.sinks.base import LocalMemory
from aftercall.sinks.notes import call_key, note, notes_of, written
from tests.samples import a_call, an_event


class Counting(LocalMemory):
    """Notes, and how often they were asked for or written."""

    asked = 0

    async def get(self, key: str) -> str | None:
        self.asked += 1
        return await super().get(key)

    async def set(self, key: str, value: str, *, for_s: float = 60) -> None:
        self.asked += 1
        await super().set(key, value, for_s=for_s)


async def found(memory: LocalMemory) -> list[str]:
    return [where async for where in notes_of(memory, a_call())]


async def test_the_thousandth_note_of_a_call_costs_what_the_second_did() -> None:
    memory = Counting()
    await note(memory, an_event(id="evt_0"), "0")
    before = memory.asked
    await note(memory, an_event(id="evt_1"), "1")
    cost = memory.asked - before
    for number in range(2, 1000):
        before = memory.asked
        await note(memory, an_event(id=f"evt_{number}"), str(number))

    assert memory.asked - before <= cost
    assert await found(memory) == [str(number) for number in reversed(range(1000))]


async def test_notes_made_at_once_are_all_found_and_then_forgotten() -> None:
    memory = LocalMemory()
    await asyncio.gather(*(note(memory, an_event(id=f"evt_{number}"), str(number)) for number in range(32)))

    assert sorted(await found(memory), key=int) == [str(number) for number in range(32)]
    assert await found(memory) == []
    await note(memory, an_event(id="evt_later"), "later")
    assert await found(memory) == ["later"]


async def test_what_several_events_wrote_in_one_place_is_noted_once() -> None:
    memory = LocalMemory()
    for number in range(3):
        await note(memory, an_event(id=f"evt_{number}"), "one message")

    assert await found(memory) == ["one message"]
    assert await written(memory, an_event(id="evt_2")) == "one message"


async def test_a_note_is_found_also_where_those_before_it_are_forgotten() -> None:
    memory = LocalMemory()
    for number in range(3):
        await note(memory, an_event(id=f"evt_{number}"), str(number))
    for number in range(2):
        await memory.delete(f"{call_key(a_call())}:{number}")

    assert await found(memory) == ["2"]
