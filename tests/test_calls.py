"""`aftercall calls fetch`, run as a process against a vendor on loopback, without any Redis."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from aftercall.call import Call
from tests.servers import free_port
from tests.stack import ACCOUNTS, KEYS, ROOT, Vendor, fixture

Run = Callable[..., Awaitable[subprocess.CompletedProcess[str]]]
RECORD = "/v2/get-call/call_oak"


@pytest.fixture
async def vendor() -> AsyncIterator[tuple[Vendor, str]]:
    """The record APIs, and their root."""
    made, app, port = Vendor(), web.Application(), free_port()
    app.router.add_get("/{path:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield made, f"http://127.0.0.1:{port}"
    await runner.cleanup()


@pytest.fixture
def fetch(tmp_path: Path, vendor: tuple[Vendor, str]) -> Run:
    """`aftercall calls fetch …`; no key is ever shown."""
    (tmp_path / "aftercall.toml").write_text(ACCOUNTS % {"vendor": vendor[1]})

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "aftercall.cli", "calls", "fetch", *arguments],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **KEYS},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert [key for key in KEYS.values() if key in done.stdout + done.stderr] == []
        return done

    return lambda *arguments: asyncio.to_thread(run, *arguments)


async def test_a_call_is_printed_whole_with_its_metrics(vendor: tuple[Vendor, str], fetch: Run) -> None:
    vendor[0].records[RECORD] = {**fixture("retell", "rest.get_call"), "call_id": "call_oak"}
    done = await fetch("clinic", "call_oak", "--json")

    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    call = msgspec.json.decode(line, type=Call)
    assert (call.id, call.provider, call.account) == ("call_oak", "retell", "clinic")
    assert call.status == "ended"
    assert call.transcript
    assert call.metrics is not None
    assert call.metrics.turns == sum(turn.role in ("user", "agent") for turn in call.transcript)
    for_people = (await fetch("clinic", "call_oak")).stdout
    assert for_people.startswith('{\n  "id": "call_oak"')
    assert json.loads(for_people) == json.loads(line)


async def test_a_call_of_ultravox_is_its_object_and_its_messages(vendor: tuple[Vendor, str], fetch: Run) -> None:
    vendor[0].records |= {
        "/api/calls/uv-7": {"callId": "uv-7", "ended": "2026-11-20T10:04:00Z", "joined": "2026-11-20T10:01:00Z"},
        "/api/calls/uv-7/messages": {"results": [{"role": "MESSAGE_ROLE_USER", "text": "two tickets please"}]},
    }
    call = json.loads((await fetch("ferry", "uv-7", "--json")).stdout)
    assert (call["duration_ms"], call["metrics"]["user_words"]) == (180_000, 3)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "is accounts.clinic.api_key right"),
        (404, "there is no such call in this account"),
        (429, "try again in 7 s"),
        (503, "in trouble"),
    ],
)
async def test_a_refusal_exits_5_and_says_what_to_check(
    vendor: tuple[Vendor, str], fetch: Run, status: int, words: str
) -> None:
    vendor[0].faults[RECORD] = [lambda: web.Response(status=status, headers={"retry-after": "7"})]
    done = await fetch("clinic", "call_oak")
    assert (done.returncode, done.stdout) == (5, "")
    assert f"HTTP {status}" in done.stderr
    assert words in done.stderr


async def test_an_unreachable_provider_exits_5(tmp_path: Path, fetch: Run) -> None:
    (tmp_path / "aftercall.toml").write_text(ACCOUNTS % {"vendor": f"http://127.0.0.1:{free_port()}"})
    done = await fetch("clinic", "call_oak")
    assert done.returncode == 5
    assert "clinic: the provider's API cannot be reached" in done.stderr
    assert "accounts.clinic.base_url" in done.stderr


async def test_wrong_usage_exits_2(fetch: Run) -> None:
    unknown = await fetch("clinc", "call_oak")
    assert unknown.returncode == 2
    assert "there are clinic, parcel, ferry" in unknown.stderr
    assert (await fetch("clinic", " ")).returncode == 2
