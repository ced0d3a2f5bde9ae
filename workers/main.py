"""The worker: arq's, with the ledger's open work in place of arq's queue.

arq gives functions, cron, signals and the shutdown; a plain arq job enqueued on `jobs.ARQ_QUEUE` runs as arq runs it.
What must not be lost (`process`, `deliver`) is claimed from the ledger under a lease, many at once, one lane a sink.
"""

import asyncio
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog
from arq import Worker, cron, func
from arq.cron import CronJob
from arq.worker import Function

from aftercall import jobs
from aftercall.errors import LedgerUnavailable
from aftercall.redis_client import FAILURES
from aftercall.states import PROCESS_STEP, Claim, sink_of
from workers.deliver import deliver
from workers.hub import Hub
from workers.lanes import LEASE_S, Lanes
from workers.process import process
from workers.quarantine import Quarantine, is_suspect
from workers.reconcile import TIMEOUT_S as RECONCILE_TIMEOUT_S
from workers.reconcile import note_beginning, reconcile
from workers.sweep import sweep

FUNCTIONS: Sequence[Function] = [func(process, name=jobs.PROCESS), func(deliver, name=jobs.DELIVER)]
CRON: Sequence[CronJob] = [
    cron(sweep, second=0, keep_result=0),
    cron(reconcile, minute={7, 22, 37, 52}, second=30, keep_result=60, timeout=RECONCILE_TIMEOUT_S, max_tries=1),
]

CLAIM_AT_ONCE = 4  # of each lane, before a look at how busy this process is
BUSY_S = 0.005  # a turn of the event loop that takes longer: first finish what is under way
POLL_S = 0.5  # how late a retry may start; new webhooks wake the worker at once
SHUTDOWN_S = 25  # under the 30 s that platforms give
HEALTH_S = 15
RETRY_ARQ_S = 5.0
RECONNECT_S = (0.1, 0.2, 0.5, 1.0, 2.0)

log = structlog.get_logger("workers")


class LedgerWorker(Worker):
    """arq's Worker, claiming from the ledger and surviving what happens to Redis."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(
            functions=FUNCTIONS,
            cron_jobs=CRON,
            queue_name=jobs.ARQ_QUEUE,
            redis_pool=hub.ledger.redis,
            job_completion_wait=SHUTDOWN_S,
            keep_result=0,
            job_timeout=LEASE_S,
            job_serializer=jobs.serialize,
            job_deserializer=jobs.deserialize,
            health_check_interval=HEALTH_S,
            health_check_key=f"aftercall:worker:{socket.gethostname()}:{os.getpid()}",
            ctx={"hub": hub},
        )
        self.hub = hub
        self.lanes: Lanes
        self.quarantine = Quarantine(hub)
        self._served_arq_at = 0.0
        self._work: asyncio.Task[bool] | None = None  # a look at whether there is work, perhaps still under way

    async def main(self) -> None:
        """Claim and run until told to stop. Replaces arq's loop, which ends at the first failure of Redis."""
        self.lanes = self.ctx["lanes"] = Lanes(
            {name: sink.settings.rate_per_s for name, sink in self.hub.sinks.items()}, self.tasks
        )
        self.ctx["redis"] = self.pool
        log.info("worker_starts", accounts=list(self.hub.providers), sinks=list(self.hub.sinks))
        if not self.hub.sinks:
            log.warning("no_sink", detail="no sink is configured: events stay in the ledger and go nowhere")
        with suppress(LedgerUnavailable, *FAILURES):  # a Redis that is full, say: then the first reconciling notes it
            await note_beginning(self.hub)
        failures = 0
        while True:
            try:
                await self._until_less_busy()
                more = await self._claim_due()
                await self._serve_arq()
                if not more:
                    await self._wait()
                failures = 0
            except (LedgerUnavailable, *FAILURES) as error:
                wait_s = RECONNECT_S[min(failures, len(RECONNECT_S) - 1)]
                failures += 1
                log.error("redis_unavailable", detail=str(error)[:200], wait_s=wait_s)
                await asyncio.sleep(wait_s)

    async def _claim_due(self) -> bool:
        """Claim what is due and start it; whether there may be more that could be started now."""
        self.lanes.stopping = not self.allow_pick_jobs
        if self.lanes.stopping:
            return False
        self.lanes.freed.clear()
        if self.lanes.overloaded:
            return False
        wanted = {lane: min(free, CLAIM_AT_ONCE) for lane, free in self.lanes.free.items()}
        claims = await self.hub.ledger.claim(wanted, lease_s=LEASE_S, rates=self.lanes.rates)
        for claim in claims:
            self.lanes.free[claim.lane] -= 1
            self.lanes.run(claim, self._job(claim))
            wanted[claim.lane] -= 1
        return any(count == 0 and self.lanes.free[lane] > 0 for lane, count in wanted.items())

    async def _until_less_busy(self) -> None:
        """Wait while the event loop is behind with what was claimed before.

        An event that waits in Redis is safe and free for other workers. One that was delivered and waits here for its
        outcome to be written down is delivered again if this process is killed.
        """
        loop = asyncio.get_running_loop()
        while len(self.tasks) >= CLAIM_AT_ONCE:
            before = loop.time()
            await asyncio.sleep(0)
            if loop.time() - before < BUSY_S:
                return

    async def _serve_arq(self) -> None:
        """arq's own turn, no more often than arq would take it: cron, health, plain jobs."""
        now = time.monotonic()
        if now - self._served_arq_at >= POLL_S:
            self._served_arq_at = now
            try:
                await self._poll_iteration()
            except FAILURES as error:  # a Redis that is full, say: work can still be finished
                self._served_arq_at = now + RETRY_ARQ_S
                log.error("cron_unavailable", detail=type(error).__name__)

    def _job(self, claim: Claim) -> Any:
        if is_suspect(claim):
            return self.quarantine.run(claim)
        ctx = {**self.ctx, "claim": claim}
        if sink_of(claim.lane) == PROCESS_STEP:
            return self.functions[jobs.PROCESS].coroutine(ctx, claim.event_id)
        return self.functions[jobs.DELIVER].coroutine(ctx, claim.event_id, sink_of(claim.lane))

    async def _wait(self) -> None:
        """Until there may be something to claim: a webhook, a free place, or the next look at what became due."""
        if self.lanes.stopping:
            await asyncio.sleep(POLL_S)
            return
        if self._work is None:
            self._work = asyncio.create_task(self.hub.ledger.wait_for_work(POLL_S))
        waits: set[asyncio.Task[Any]] = {self._work}
        if self.lanes.full:
            # A lane that is full, of a sink that hangs say, is looked at when a place in it is free; the others need
            # not wait for that, so both are waited for at once.
            waits.add(asyncio.create_task(self.lanes.freed.wait()))
        done, rest = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in rest - {self._work}:
            task.cancel()
        if self._work in done:
            work, self._work = self._work, None
            work.result()  # raises what Redis said
