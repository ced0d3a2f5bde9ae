"""Work that may have killed its worker is done in a process of its own, where its death is seen and harms nobody.

A lease that ends without an outcome says that a worker died (or was stopped for long); it does not say which of the
events it had in hand was to blame. After two such deaths an event is a suspect. If the process that then has it alone
dies too, that is the proof: it is parked as a dead letter. A suspect that is done without harm is done.

    python -m workers.alone < claim.json
"""

import asyncio
import signal
import sys
from typing import Any

import msgspec
import structlog

from aftercall import settings
from aftercall.ledger import PROCESS_LANE, PROCESS_STEP, Claim, DeliveryState, sink_of
from aftercall.logs import configure_logs
from workers.deliver import deliver, give_up
from workers.hub import Hub
from workers.lanes import LEASE_S, Lanes
from workers.process import process

SUSPECT_AFTER = 2  # deaths
HOPELESS_AFTER = 10  # deaths, should no process be left to see the proof: a host that runs out of memory, say
AT_ONCE = 2  # processes
COME_BACK_S = 1.0
DONE = 17  # the status of a process that got to its end; 0 may be a plug-in's own way to leave

log = structlog.get_logger("workers.alone")
_running = 0


def is_suspect(claim: Claim) -> bool:
    return claim.deaths >= SUSPECT_AFTER


async def run_alone(ctx: dict[str, Any], claim: Claim) -> None:
    """Do a suspect's work in a process of its own; park it if that dies."""
    global _running
    hub: Hub = ctx["hub"]
    if claim.deaths >= HOPELESS_AFTER:
        await _park(hub, claim, f"{claim.deaths} workers ended while they had it")
        return
    if _running >= AT_ONCE:
        await hub.ledger.defer(claim, COME_BACK_S, unbegun=True)
        return
    _running += 1
    try:
        log.warning("suspect", lane=claim.lane, event_id=claim.event_id, deaths=claim.deaths)
        how = await _child(claim)
    finally:
        _running -= 1
    if how:
        await _park(hub, claim, f"parked after {claim.deaths + 1} deaths: the last process that had it alone {how}")


async def _child(claim: Claim) -> str | None:
    """None if the work was done, else how its process ended."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers.alone", stdin=asyncio.subprocess.PIPE, stdout=None, stderr=None
    )
    try:
        async with asyncio.timeout(LEASE_S):
            await child.communicate(msgspec.json.encode(claim))
    except TimeoutError:
        return f"did not end within {LEASE_S:.0f} s"
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    status = child.returncode or 0
    if status == DONE:
        return None
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


async def _park(hub: Hub, claim: Claim, why: str) -> None:
    sink, state = sink_of(claim.lane), DeliveryState()
    if claim.lane != PROCESS_LANE:
        _, state = await hub.ledger.load_delivery(claim.event_id, sink) or (b"", state)
    await give_up(hub.ledger, claim, sink, state, why)


async def _do(claim: Claim) -> None:
    hub = Hub(settings.load())
    lanes = Lanes({name: sink.settings.rate_per_s for name, sink in hub.sinks.items()}, {})
    lanes.stopping = True  # an event's deliveries are for the workers
    ctx = {"hub": hub, "claim": claim, "lanes": lanes}
    try:
        if sink_of(claim.lane) == PROCESS_STEP:
            await process(ctx, claim.event_id)
        else:
            await deliver(ctx, claim.event_id, sink_of(claim.lane))
    finally:
        await hub.close()


def main() -> int:
    # Platforms and terminals signal every process of a group; this one ends soon by itself.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logs()
    try:
        asyncio.run(_do(msgspec.json.decode(sys.stdin.buffer.read(), type=Claim)))
    except Exception as error:  # Redis is away, say: no death, and the lease brings the work back
        log.error("job_failed", error=type(error).__name__)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
