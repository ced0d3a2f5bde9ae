"""Forty sinks of twelve types beside each other: what one of them does is nobody else's business."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from pathlib import Path

import pytest
from aiohttp import web

from aftercall.plugins import SINKS
from aftercall.testing import Answer, Destination, Sent
from tests.stack import ACCOUNTS, SECRET, SINK, Stack, a_retell_call
from tests.test_end_to_end import give_any_record, open_ledger

# As each vendor answers when all is well.
WELL = {
    "slack": Answer(200, "ok"),
    "slack_bot": Answer(200, {"ok": True, "channel": "C1", "ts": "1732.000100"}),
    "discord": Answer(200, {"id": "1310"}),
    "teams": Answer(202),
    "hubspot": Answer(200, {"status": "COMPLETE", "results": [{"id": "7"}]}),
}
OPTIONS = {
    "webhook": f'url = "%s"\nsecret = "{SECRET}"',
    "slack": 'url = "%s"',
    "slack_bot": 'base_url = "%s"\ntoken = "xoxb-1"\nchannel = "C1"',
    "discord": 'url = "%s/api/webhooks/1/x"',
    "teams": 'url = "%s"',
    "hubspot": 'base_url = "%s"\ntoken = "pat-1"\ncontacts = false',
    "otel": 'endpoint = "%s"',
    "langfuse": 'host = "%s"\npublic_key = "pk-1"\nsecret_key = "sk-1"',
}
BROKEN = "webhook0"
ROUNDS = 16


class Vendors(Destination):
    """All of the HTTP destinations; a path begins with the sink's name."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = self.answer
        self.arrivals: dict[str, float] = {}  # the latest at each sink
        self.mended = asyncio.Event()  # until then one of them takes requests and does not answer

    def answer(self, sent: Sent) -> Answer:
        name = sent.path.split("/")[1]
        self.arrivals[name] = time.perf_counter()
        return WELL.get(name.rstrip("0123456789"), Answer(200, {}))

    async def _take(self, request: web.Request) -> web.Response:
        if request.path.startswith(f"/{BROKEN}"):
            await self.mended.wait()
        return await super()._take(request)

    async def latencies_s(self, stack: Stack, call_ids: Iterable[str], names: set[str]) -> list[float]:
        """From a webhook's post to its event at each of these sinks, for one call after the other."""
        found: list[float] = []
        for call_id in call_ids:
            self.arrivals.clear()
            started = time.perf_counter()
            await stack.post("clinic", a_retell_call(call_id))
            async with asyncio.timeout(10):
                while not names <= self.arrivals.keys():
                    await asyncio.sleep(0.005)
            found += [self.arrivals[name] - started for name in names]
            await asyncio.sleep(0.1)
        return found


@pytest.fixture
async def vendors() -> AsyncIterator[Vendors]:
    made = Vendors()
    await made.start()
    yield made
    await made.stop()


def tables(url: str, redis_url: str, directory: Path) -> dict[str, str]:
    """The sinks by name: 39, beside the one that the stack brings."""
    made = {
        f"{kind}{number}": f'type = "{kind}"\nallow_private_network = true\n' + options % f"{url}/{kind}{number}"
        for kind, options in OPTIONS.items()
        for number in range(4)
    }
    made |= {f"file{n}": f'type = "file"\npath = "{directory}/events-{n}.ndjson"' for n in range(2)}
    made |= {f"stream{n}": f'type = "redis_stream"\nurl = "{redis_url}"\nstream = "stream-{n}"' for n in range(3)}
    made["console"] = 'type = "console"\nformat = "json"'
    made["apprise"] = f'type = "apprise"\nurls = ["{url.replace("http", "json")}/apprise"]'
    return made


def toml(made: dict[str, str]) -> str:
    sinks = "".join(f'[sinks.{name}]\nevents = ["*"]\n{table}\n' for name, table in made.items())
    return ACCOUNTS + SINK + sinks.replace("%", "%%")


async def test_one_of_forty_sinks_that_hangs_leaves_the_others_latency_as_it_was(
    stack: Stack, vendors: Vendors, tmp_path: Path
) -> None:
    made = tables(vendors.url, stack.redis_url, tmp_path)
    kinds = {table.split('"')[1] for table in made.values()}
    assert (len(made) + 1, len(kinds)) == (40, 12)
    assert kinds <= set(SINKS)
    over_http = {name for name, table in made.items() if vendors.url in table} - {BROKEN}
    give_any_record(stack, *(f"call_{number}" for number in range(4 + 6 * ROUNDS)))
    names = (f"call_{number}" for number in range(4 + 6 * ROUNDS))

    stack.configure(toml(made))
    await stack.start_service()
    stack.start_worker()
    await vendors.latencies_s(stack, islice(names, 4), over_http)
    medians_ms: dict[bool, list[float]] = {True: [], False: []}
    calls = 4
    for turn in range(ROUNDS):  # by turns, since the machine is now busy and now idle
        for well in (True, False):
            (vendors.mended.set if well else vendors.mended.clear)()
            latencies = await vendors.latencies_s(stack, islice(names, 3), over_http)
            medians_ms[well].append(statistics.median(latencies) * 1000)
            calls += 3
        well_ms, ill_ms = min(medians_ms[True]), min(medians_ms[False])
        if turn >= 3 and ill_ms < 1.5 * well_ms + 5:  # what slows the others down does so in every round
            break
    print(f"p50 of all the others, while all are well and while one hangs: {well_ms:.1f} ms, {ill_ms:.1f} ms")  # noqa: T201
    assert ill_ms < 1.5 * well_ms + 5

    ledger = await open_ledger(stack)
    waiting = await ledger.open_work([f"deliver:{name}" for name in made])
    assert {lane for lane, (count, _) in waiting.items() if count} == {f"deliver:{BROKEN}"}
    assert await ledger.dead_letters() == []
    for name in ("events-0.ndjson", "events-1.ndjson"):
        assert len((tmp_path / name).read_text().splitlines()) == calls
    assert await ledger.redis.xlen("stream-2") == calls
