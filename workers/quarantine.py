"""Work that may have killed its worker is done in a process beside it, where its death is seen and harms nobody.

A lease that ends without an outcome says that a worker died, or was stopped for long; it does not say which of the
events it had in hand was to blame. After two such deaths an event is a suspect: it is done alone, in a ward. If the
ward dies over it too, that is the proof, and it is parked as a dead letter. A suspect that comes to an end is cleared.

    python -m workers.quarantine FD     reads claims from standard input, a line each, and answers on that descriptor
"""

import asyncio
import os
import signal
import sys
from typing import Any

import msgspec
import structlog

import workers.lanes
from aftercall import settings
from aftercall.logs import configure_logs
from aftercall.states import PROCESS_STEP, Claim, DeliveryState, sink_of
from workers.deliver import deliver, give_up
from workers.hub import Hub
from workers.lanes import LEASE_S, Lanes
from workers.process import process

SUSPECT_AFTER = 2  # deaths
HOPELESS_AFTER = 10  # deaths, should nobody be left to see the proof: a host that runs out of memory, say
MAX_WARDS = 4
MAX_WAITING = 32  # a ward
LONGEST_WAIT_S = 10.0  # well within the lease
COME_BACK_S = 1.0
IDLE_S = 5.0
PATIENCE_S = 10.0  # with Redis, in a ward: one that waits for it to the end of the lease would pass for dead

log = structlog.get_logger("workers.quarantine")


def is_suspect(claim: Claim) -> bool:
    return claim.deaths >= SUSPECT_AFTER


class Quarantine:
    """A ward for each lane that has suspects, for as long as it has them."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._wards: dict[str, Ward] = {}

    async def run(self, claim: Claim) -> None:
        """Do a suspect's work in its lane's ward; park it if the ward dies over it."""
        if claim.deaths >= HOPELESS_AFTER:
            await self._park(claim, f"parked after {claim.deaths} deaths of the workers that had it")
            return
        ward = self._wards.get(claim.lane)
        if ward is None and len(self._wards) < MAX_WARDS:
            ward = self._wards[claim.lane] = Ward()
        if ward is None or ward.waiting >= MAX_WAITING:
            await self._hub.ledger.defer(claim, COME_BACK_S, unbegun=True)
            return
        came = asyncio.get_running_loop().time()
        ward.waiting += 1
        try:
            async with ward.one_at_a_time:
                if asyncio.get_running_loop().time() - came > LONGEST_WAIT_S:
                    await self._hub.ledger.defer(claim, COME_BACK_S, unbegun=True)
                    return
                log.warning("suspect", lane=claim.lane, event_id=claim.event_id, deaths=claim.deaths)
                how = await ward.do(claim)
        finally:
            ward.waiting -= 1
            asyncio.get_running_loop().call_later(IDLE_S, self._close_if_idle, claim.lane)
        if how:
            await self._park(claim, f"parked after {claim.deaths + 1} deaths: the last process {how}")

    async def _park(self, claim: Claim, why: str) -> None:
        sink, state = sink_of(claim.lane), DeliveryState()
        if sink != PROCESS_STEP:
            _, state = await self._hub.ledger.load_delivery(claim.event_id, sink) or (b"", state)
        await give_up(self._hub.ledger, claim, sink, state, why)

    def _close_if_idle(self, lane: str) -> None:
        ward = self._wards.get(lane)
        if ward is not None and not ward.waiting:
            del self._wards[lane]
            ward.close()


class Ward:
    """A process that does one claim after another, and is started anew when one has killed it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.one_at_a_time = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._answers = asyncio.StreamReader()

    async def do(self, claim: Claim) -> str | None:
        """None if the work came to an end, else how the process ended."""
        process, claims = await self._open()
        answer = b""
        try:
            async with asyncio.timeout(LEASE_S):
                claims.write(msgspec.json.encode(claim) + b"\n")
                await claims.drain()
                answer = await self._answers.readline()
        except TimeoutError:
            process.kill()
            return f"did not end within {LEASE_S:.0f} s"
        except ConnectionError:
            pass  # it is dead; how, follows
        finally:
            if not answer:
                self._process = None
        if answer:
            return None
        status = await process.wait()
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    async def _open(self) -> tuple[asyncio.subprocess.Process, asyncio.StreamWriter]:
        if self._process is not None and self._process.stdin is not None:
            return self._process, self._process.stdin
        reading, writing = os.pipe()  # its standard output belongs to the sinks
        self._answers = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(self._answers)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(reading, "rb"))
        command = (sys.executable, "-m", "workers.quarantine", str(writing))
        try:
            pipe = asyncio.subprocess.PIPE
            self._process = await asyncio.create_subprocess_exec(*command, stdin=pipe, pass_fds=(writing,))
        finally:
            os.close(writing)
        return await self._open()

    def close(self) -> None:
        """Let the process end: nothing more will come."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


async def _do_claims(answers: int) -> None:
    """The ward's side: do claims until there are no more."""
    workers.lanes.PATIENCE_S = PATIENCE_S
    hub = Hub(settings.load())
    lanes = Lanes({name: sink.settings.rate_per_s for name, sink in hub.sinks.items()}, {})
    lanes.stopping = True  # an event's deliveries are for the workers
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        claim = msgspec.json.decode(line, type=Claim)
        ctx: dict[str, Any] = {"hub": hub, "claim": claim, "lanes": lanes}
        try:
            if sink_of(claim.lane) == PROCESS_STEP:
                await process(ctx, claim.event_id)
            else:
                await deliver(ctx, claim.event_id, sink_of(claim.lane))
        except Exception as error:  # Redis is away, say: no death, and the lease brings the work back
            log.error("job_failed", lane=claim.lane, event_id=claim.event_id, error=type(error).__name__)
        os.write(answers, b"ended\n")
    await hub.ledger.close()
    await hub.close()


def main() -> int:
    # Platforms and terminals signal every process of a group; this one ends when its worker has.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logs()
    asyncio.run(_do_claims(int(sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
