"""The operator's command, run as a process."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from aiohttp import web

from aftercall.cli.demo import Watch
from aftercall.event import CallEvent
from aftercall.ledger import Ledger
from aftercall.redis_client import connect
from tests.samples import an_event
from tests.servers import free_port, until
from tests.stack import ACCOUNTS, ROOT, SINK, Stack, a_retell_call, fixture
from tests.test_end_to_end import open_ledger, until_done


def aftercall(*arguments: str, stack: Stack | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    base = stack.environ if stack else {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "aftercall.cli", *arguments],
        env={**base, **environ},
        cwd=stack.directory if stack else ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_schema_is_printed_without_any_configuration_and_fits_an_event() -> None:
    printed = aftercall("events", "schema")

    assert printed.returncode == 0
    schema = json.loads(printed.stdout)
    assert schema["$schema"].endswith("2020-12/schema")
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(msgspec.to_builtins(an_event()))
    broken = {**msgspec.to_builtins(an_event()), "type": "call.exploded"}
    assert not validator.is_valid(broken)


async def test_check_tells_accounts_sinks_and_what_the_server_promises(stack: Stack) -> None:
    checked = await asyncio.to_thread(aftercall, "check", stack=stack)
    as_json = await asyncio.to_thread(aftercall, "check", "--json", stack=stack)

    assert checked.returncode == 0, checked.stderr
    assert "POST /webhooks/clinic" in checked.stdout
    assert "fsynced: every write" in checked.stdout
    assert json.loads(as_json.stdout)["accounts"] == {"clinic": "retell", "parcel": "cartesia", "ferry": "ultravox"}


def test_a_wrong_configuration_exits_3_and_names_every_problem() -> None:
    failed = aftercall("check", CARTESIA_API_KEY="sk_car_1")

    assert failed.returncode == 3
    assert failed.stdout == ""
    assert "CARTESIA_WEBHOOK_SECRET: missing" in failed.stderr
    assert "REDIS_URL: missing" in failed.stderr


def test_an_unreachable_redis_exits_5_and_wrong_usage_2() -> None:
    unreachable = aftercall("check", RETELL_API_KEY="key_1", REDIS_URL=f"redis://127.0.0.1:{free_port()}")

    assert unreachable.returncode == 5
    assert "REDIS_URL" in unreachable.stderr
    assert "Traceback" not in unreachable.stderr
    assert aftercall("explode").returncode == 2


async def test_events_and_dead_letters_are_listed_and_shown(stack: Stack) -> None:
    record = fixture("retell", "rest.get_call")
    stack.vendor.records["/v2/get-call/call_1"] = {**record, "call_id": "call_1"}
    await stack.start()
    await stack.post("clinic", a_retell_call("call_1"))
    (event,) = await stack.receiver.until(1)
    await until_done(await open_ledger(stack))

    listed = await asyncio.to_thread(aftercall, "events", "list", "--json", stack=stack)
    (row,) = [json.loads(line) for line in listed.stdout.splitlines()]
    assert (row["id"], row["type"], row["state"]) == (event["id"], "call.ended", "done")
    shown = json.loads((await asyncio.to_thread(aftercall, "events", "show", event["id"], stack=stack)).stdout)
    assert shown["event"] == event
    assert shown["deliveries"]["hook"]["state"] == "delivered"
    assert (await asyncio.to_thread(aftercall, "events", "show", "evt_no", stack=stack)).returncode == 1
    assert (await asyncio.to_thread(aftercall, "dead", "list", "--json", stack=stack)).stdout == ""


async def test_dead_letters_are_replayed_and_dropped_by_the_command(stack: Stack) -> None:
    record = fixture("retell", "rest.get_call")
    stack.vendor.records |= {f"/v2/get-call/call_{n}": {**record, "call_id": f"call_{n}"} for n in range(3)}
    stack.receiver.answers = [lambda: web.Response(status=400)] * 3
    await stack.start()
    for number in range(3):
        await stack.post("clinic", a_retell_call(f"call_{number}"))

    async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(aftercall, "dead", *arguments, stack=stack)

    async def letters() -> list[Any]:
        return [json.loads(line) for line in (await run("list", "--json")).stdout.splitlines()]

    async def all_died() -> bool:
        return len(await letters()) == 3

    await until(all_died)
    first = (await letters())[0]
    assert first["error"] == "HTTP 400"
    assert (await run("replay", first["event"])).returncode == 0
    assert (await stack.receiver.until(1))[0]["id"] == first["event"]
    dropped = await run("drop", "--all", "--sink", "hook")
    assert (dropped.returncode, dropped.stderr) == (0, "2 dropped\n")
    assert (await run("replay", "--all")).returncode == 1
    assert (await run("replay")).returncode == 2
    assert await letters() == []


async def test_thousands_of_dead_letters_are_listed_and_dropped(stack: Stack) -> None:
    count = 5000  # more than may wait for Redis at once
    ledger = Ledger(connect(stack.redis_url), retention_s=3600)
    await ledger.redis.zadd("aftercall:dead", {f"evt_{number}|hook": number for number in range(count)})
    await ledger.close()

    listed = await asyncio.to_thread(aftercall, "dead", "list", "--json", stack=stack)
    assert (listed.returncode, len(listed.stdout.splitlines())) == (0, count)
    dropped = await asyncio.to_thread(aftercall, "dead", "drop", "--all", stack=stack)
    assert dropped.stderr == f"{count} dropped\n"


@pytest.mark.long
async def test_events_are_replayed_in_bulk_by_the_command(stack: Stack) -> None:
    ids = [f"call_{number}" for number in range(12)]
    record = fixture("retell", "rest.get_call")
    stack.vendor.records |= {f"/v2/get-call/{call_id}": {**record, "call_id": call_id} for call_id in ids}
    stack.configure(ACCOUNTS + SINK + SINK.replace("sinks.hook", "sinks.other"))
    await stack.start()
    for call_id in ids:
        await stack.post("clinic", a_retell_call(call_id))
    first = {event["id"]: event for event in await stack.receiver.until(24)}
    await until_done(await open_ledger(stack))

    async def replay(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(aftercall, "replay", *arguments, stack=stack)

    dry = await replay("--since", "1h", "--dry-run", "--json")
    assert {json.loads(line)["event"] for line in dry.stdout.splitlines()} == set(first)
    assert "24 would be delivered again" in dry.stderr
    await stack.receiver.stays_at(24, for_s=0.3)
    done = await replay("--since", "1h", "--sink", "hook", "--type", "call.ended")
    assert (done.returncode, done.stderr) == (0, "12 due again\n")
    again = (await stack.receiver.until(36))[24:]
    assert {event["id"]: event for event in again} == first, "the same ids, the same content"
    await stack.receiver.stays_at(36, for_s=0.3)
    assert (await replay(next(iter(first)))).returncode == 0
    await stack.receiver.until(38)
    assert (await replay("--since", "1h", "--type", "call.billed")).returncode == 1
    assert (await replay("evt_none")).returncode == 1
    for wrong in ((), ("--since", "soon"), ("--since", "1h", "--sink", "nobody"), ("evt_1", "--since", "1h")):
        assert (await replay(*wrong)).returncode == 2


@pytest.mark.long
async def test_a_sink_is_paused_and_resumed_by_the_command_and_what_waited_drains(stack: Stack) -> None:
    ids = [f"call_{number}" for number in range(5)]
    record = fixture("retell", "rest.get_call")
    stack.vendor.records |= {f"/v2/get-call/{call_id}": {**record, "call_id": call_id} for call_id in ids}
    await stack.start()

    async def sinks(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(aftercall, "sinks", *arguments, stack=stack)

    assert (await sinks("pause", "hook")).returncode == 0
    for call_id in ids:
        await stack.post("clinic", a_retell_call(call_id))

    async def row() -> Any:
        return json.loads((await sinks("list", "--json")).stdout)

    async def all_wait() -> bool:
        return bool((await row())["waiting"] == 5)

    await until(all_wait)
    await stack.receiver.stays_at(0, for_s=0.5)
    assert (await row())["state"] == "paused"
    async with stack.http.get(f"{stack.url}/metrics") as response:
        assert 'aftercall_sink_state{sink="hook",state="paused"} 1.0' in await response.text()
    assert "the sink hook is paused" in (await asyncio.to_thread(aftercall, "check", stack=stack)).stdout
    resumed = await sinks("resume", "hook")
    assert "5 deliveries wait" in resumed.stderr
    assert {event["subject"] for event in await stack.receiver.until(5)} == set(ids)
    assert (await row())["state"] == "ok"
    assert (await sinks("pause", "nobody")).returncode == 2


async def test_sinks_are_listed_with_their_secrets_masked(stack: Stack) -> None:
    listed = await asyncio.to_thread(aftercall, "sinks", "list", "--json", stack=stack)

    (row,) = [json.loads(line) for line in listed.stdout.splitlines()]
    assert row["type"] == "webhook"
    assert "whsec_" not in listed.stdout
    assert "secret=***" in row["options"]
    types = await asyncio.to_thread(aftercall, "sinks", "types", "--json", stack=stack)
    assert {json.loads(line)["type"] for line in types.stdout.splitlines()} >= {"console", "slack", "webhook"}


def a_watch(*arrived: CallEvent) -> Watch:
    watch = Watch()
    watch.facts = {("clinic", "call_1", "call_ended"): 1.0, ("clinic", "call_2", "call_ended"): 1.0}
    watch.arrived = [(1.5, event) for event in arrived]
    return watch


def event_of(call_id: str) -> CallEvent:
    event = an_event(type="call.ended")
    call = msgspec.structs.replace(event.data.call, id=call_id, account="clinic")
    data: Any = msgspec.structs.replace(event.data, call=call, provider_event="call_ended")
    return msgspec.structs.replace(event, subject=call_id, data=data)


@pytest.mark.parametrize(
    ("call_ids", "missing", "doubled"),
    [
        (("call_1", "call_2"), [], []),
        (("call_1",), [("clinic", "call_2", "call_ended")], []),
        (("call_1", "call_2", "call_1"), [], [("clinic", "call_1", "call_ended")]),
        (("call_1", "call_2", "call_3"), [], [("clinic", "call_3", "call_ended")]),
    ],
)
def test_the_demo_s_verdict_sees_what_is_missing_and_what_came_too_often(
    call_ids: tuple[str, ...], missing: list[Any], doubled: list[Any]
) -> None:
    assert a_watch(*(event_of(call_id) for call_id in call_ids)).verdict() == (missing, doubled)


@pytest.mark.long  # `make demo` is the same
def test_the_demo_delivers_every_event_exactly_once() -> None:
    played = aftercall("demo")

    assert played.returncode == 0, played.stderr
    for words in ("duplicates suppressed", "events delivered", "webhook → sink, p50", "call.billed", "again in"):
        assert words in played.stdout


def descendants(pid: int) -> set[int]:
    """The processes that a process started, and those that they did."""
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # that thread has just ended
            for child in map(int, children.read_text().split()):
                found |= {child} | descendants(child)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_dev_started_ends_with_it_however_it_is_told(tmp_path: Path, number: signal.Signals) -> None:
    log = (tmp_path / "log").open("w+")
    command = [sys.executable, "-c", "from aftercall.cli import main; main()", "dev", "--port", str(free_port())]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    # As a shell starts what it puts aside with `&`: SIGINT is ignored.
    begin = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with log, subprocess.Popen(command, cwd=tmp_path, env=environ, stderr=log, stdout=log, preexec_fn=begin) as dev:
        deadline = time.monotonic() + 60
        while "aftercall runs at" not in (tmp_path / "log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        started = descendants(dev.pid)
        assert len(started) >= 4, "Valkey, the simulator, the service and the worker"
        dev.send_signal(number)
        assert dev.wait(timeout=60) == 0
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
