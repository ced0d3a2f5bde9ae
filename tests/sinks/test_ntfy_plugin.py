"""A sink outside the package: what a third party writes is held to the same contract, installed, found and run."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from aftercall.call import Analysis
from aftercall.client import make_client
from aftercall.testing import Answer, Destination, HttpSinkContract
from tests.samples import a_call, a_delivery, an_event
from tests.servers import until
from tests.stack import ACCOUNTS, Stack, a_retell_call

PACKAGE = Path(__file__).parents[1] / "plugins" / "aftercall_ntfy"
TOPIC, TOKEN = "harbour-violet-2208", "tk_quartz5512"
TABLE = f"""
[sinks.phone]
type = "ntfy"
url = "%(ntfy)s"
topic = "{TOPIC}"
token = "{TOKEN}"
events = ["call.ended"]
redact = ["numbers"]
retry = ["200ms", "200ms"]
allow_private_network = true
"""


def load() -> ModuleType:
    spec = spec_from_file_location("aftercall_ntfy", PACKAGE / "aftercall_ntfy.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["aftercall_ntfy"] = module  # msgspec looks its annotations up there
    spec.loader.exec_module(module)
    return module


Ntfy = load().Ntfy


class TestNtfy(HttpSinkContract):
    sink = Ntfy
    idempotent = False  # a message has no id of ours
    answer = Answer(200, {"id": "xE73Iyuabi", "time": 1790000000, "event": "message"})

    async def options(self) -> dict[str, Any]:
        return {"url": self.destination.url, "topic": TOPIC, "token": TOKEN}


@pytest.fixture
async def ntfy() -> AsyncIterator[Destination]:
    destination = Destination()
    destination.answers = lambda _: Answer(200, {"id": "xE73Iyuabi"})
    await destination.start()
    yield destination
    await destination.stop()


def made(http: Any = None, **options: Any) -> Any:
    return Ntfy("phone", msgspec.convert({"topic": TOPIC, **options}, Ntfy.Config), http)


async def test_the_servers_id_is_the_receipt_if_it_gives_one(ntfy: Destination) -> None:
    async with make_client(guarded=False) as http:
        assert await made(http, url=ntfy.url).deliver(a_delivery()) == "xE73Iyuabi"
        for body in (b"<p>ok</p>", {"id": ""}, b"[]"):
            async with ntfy.answering(200, body):
                assert await made(http, url=ntfy.url).deliver(a_delivery()) is None

    assert "authorization" not in ntfy.sent[0].headers
    assert ntfy.sent[0].json()["title"] == "Call ended: successful · Front desk"


def test_a_call_that_went_badly_rings_louder_unless_that_is_not_wanted() -> None:
    unhappy = a_delivery(an_event(call=a_call(analysis=Analysis(sentiment="negative"))))
    assert made().render(unhappy)["priority"] == 4
    assert made().render(a_delivery(an_event(call=a_call(status="failed", analysis=None))))["priority"] == 4
    assert made().render(a_delivery())["priority"] == 3
    assert made(urgent=False).render(unhappy)["priority"] == 3


def test_a_message_stays_a_message_whatever_its_length() -> None:
    call = a_call(analysis=Analysis(summary="你" * 5000), from_="☎" * 5000, to="7" * 5000, error="é" * 5000)
    message = made().render(a_delivery(an_event(call=call)))["message"]
    assert len(message.encode()) <= 4096
    assert message.endswith("retell/acme · call_7f3 · call.ended")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Where pip has installed the package, without the network."""
    target, source = tmp_path / "site", tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "aftercall_ntfy.py"):
        (source / name).write_bytes((PACKAGE / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(source)], check=True)
    return target


async def test_an_installed_plug_in_is_found_by_its_entry_point_and_delivered_to(
    stack: Stack, installed: Path, ntfy: Destination
) -> None:
    stack.configure(ACCOUNTS + TABLE.replace("%(ntfy)s", ntfy.url))
    stack.python_path.append(str(installed))
    ended = a_retell_call("call_heron")
    stack.vendor.records["/v2/get-call/call_heron"] = ended["call"]
    answers = [Answer(503), Answer(429, b"", {"retry-after": "0"})]
    ntfy.answers = lambda _: answers.pop(0) if answers else Answer(200, {"id": "xE73Iyuabi"})
    await stack.start()

    for _ in range(2):
        status, problem, _ = await stack.post("clinic", ended)
        assert status == 204, problem
    await until(lambda: ntfy.sent)
    await asyncio.sleep(0.5)

    [sent] = ntfy.sent
    message = sent.json()
    assert [refused.json() for refused in ntfy.refused] == [message] * 2
    assert (message["topic"], message["tags"][1]) == (TOPIC, "call.ended")
    assert "retell/clinic · call_heron · call.ended" in message["message"]
    assert ended["call"]["from_number"] not in message["message"]
    assert sent.headers["authorization"] == f"Bearer {TOKEN}"
    for secret in (TOPIC, TOKEN):
        assert secret not in stack.log("worker.log")
