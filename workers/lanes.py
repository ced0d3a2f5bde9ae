"""How much of each kind of work this worker does at once. A sink that is slow fills its own lane and no other."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog

from aftercall.errors import LedgerUnavailable
from aftercall.states import PROCESS_LANE, SETTLE_LANE, Claim, deliver_lane

LEASE_S = 45.0  # over the longest job (fetch 20 s, delivery 30 s); a killed worker's work is due again after it
PROCESS_SLOTS = 64
SETTLE_SLOTS = 32
DELIVER_SLOTS = 32
MAX_HELD_BYTES = 256 * 1024 * 1024  # of webhooks, records and events in memory; beyond it nothing more is claimed
PATIENCE_S = 60.0  # how long an outcome is kept in memory while Redis cannot take it

_Result = TypeVar("_Result")

log = structlog.get_logger("workers.lanes")


class Lanes:
    """Counts the free places in each lane and runs jobs in them."""

    def __init__(self, sinks: Mapping[str, float], tasks: dict[str, asyncio.Task[Any]]) -> None:
        """`sinks`: name → how many attempts a second all workers together may make; 0: as many as they can."""
        self.free = {PROCESS_LANE: PROCESS_SLOTS, SETTLE_LANE: SETTLE_SLOTS}
        self.free |= {deliver_lane(sink): DELIVER_SLOTS for sink in sinks}
        self.rates = {deliver_lane(sink): rate for sink, rate in sinks.items() if rate}
        self.tasks = tasks  # what arq's Worker waits for when it is told to stop
        self.stopping = False
        self.held_bytes = 0
        self.freed = asyncio.Event()

    @property
    def full(self) -> bool:
        return self.overloaded or min(self.free.values()) <= 0

    @property
    def overloaded(self) -> bool:
        return self.held_bytes > MAX_HELD_BYTES

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Counts content that a job has in memory."""
        self.held_bytes += size
        try:
            yield
        finally:
            self.held_bytes -= size

    def take(self, lane: str) -> bool:
        """Take a place without claiming, if there is one, no rate to keep, and the worker is not about to stop."""
        if self.stopping or self.overloaded or self.free[lane] <= 0 or lane in self.rates:
            return False
        self.free[lane] -= 1
        return True

    def give_back(self, lane: str) -> None:
        self.free[lane] += 1
        self.freed.set()

    def run(self, claim: Claim, job: Coroutine[Any, Any, None], *, held_bytes: int = 0) -> None:
        """Run a job in a place that was taken; the place is free again when it ends, however it ends."""
        key = f"{claim.lane}:{claim.event_id}:{claim.token}"
        self.held_bytes += held_bytes
        task = asyncio.get_running_loop().create_task(job)
        self.tasks[key] = task

        def done(finished: asyncio.Task[None]) -> None:
            self.tasks.pop(key, None)
            self.held_bytes -= held_bytes
            self.give_back(claim.lane)
            if not finished.cancelled() and (error := finished.exception()) is not None:
                # The ledger could not be reached: nothing was recorded, and the lease brings the work back.
                log.error("job_failed", lane=claim.lane, event_id=claim.event_id, error=type(error).__name__)

        task.add_done_callback(done)


async def persist(write: Callable[[], Awaitable[_Result]]) -> _Result:
    """Write an outcome down, again and again while Redis is away: what was sent need not be sent twice.

    `write` may be repeated. Raises `LedgerUnavailable` when Redis stays away; the lease then brings the work back.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await write()
        except LedgerUnavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.25)
