"""Secrets, phone numbers and what was said: in no log, metric, error, description or process list."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aftercall import settings
from tests.servers import RedisServer, free_port
from tests.stack import ACCOUNTS, KEYS, SECRET, SINK, Stack, a_retell_call, fixture, sign_retell, sign_ultravox

PASSWORD = "umber-thicket-83"  # of Redis, in REDIS_URL
IN_THE_FILE = {
    "api_key": "quarry-finch-20",
    "webhook_secret": "marble-otter-61",
    "url_token": "tundra-wick-75",
    "sink_secret": "whsec_bGF0Y2gtb3JjaGFyZC1zaXh0ZWVuLXBsdXM=",
}
NUMBERS = ("+15550100177", "5550100123")
WORDS = ("saffron", "Okonjo")
PRIVATE = (*KEYS.values(), SECRET, PASSWORD, *IN_THE_FILE.values(), *NUMBERS, *WORDS)

MORE = (
    """
[accounts.literal]
provider = "ultravox"
api_key = "{api_key}"
webhook_secrets = ["{webhook_secret}"]
base_url = "%(vendor)s"

[accounts.broken]
provider = "broken:Broken"
api_key = "{api_key}"

[sinks.dead]
type = "webhook"
url = "http://127.0.0.1:{port}/{url_token}?token={url_token}"
secret = "{sink_secret}"
allow_private_network = true
retry = ["50ms"]
"""
).replace("{port}", str(free_port()))
BROKEN = """
from aftercall.providers.retell import Retell


class Broken(Retell):
    def decode(self, body):
        raise ValueError(f"cannot make sense of {body!r}")
"""


def heard(call_id: str, **changes: Any) -> bytes:
    """A webhook with a number, a name and a word that are private."""
    said = {"from_number": NUMBERS[0], "to_number": f"+1{NUMBERS[1]}", "transcript": "Agent: saffron, Ms Okonjo?\n"}
    return json.dumps(a_retell_call(call_id, **said, **changes)).encode()


def shown_by_processes(stack: Stack) -> str:
    """The command lines of all processes that were started, and of theirs."""
    parents = {process.pid for process in stack.processes}
    lines = []
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in parents or int(entry.name) in parents:
                parents.add(int(entry.name))
                lines.append((entry / "cmdline").read_text())
        except OSError:  # it has just ended
            continue
    assert len(lines) >= len(stack.processes)
    return "\n".join(lines)


async def raw(stack: Stack, request: str) -> str:
    """What comes back on a connection of its own, until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    writer.write(request.encode())
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def get(stack: Stack, path: str) -> str:
    async with stack.http.get(stack.url + path) as response:
        return await response.text()


async def test_no_secret_number_or_word_of_a_call_is_shown_anywhere(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server.options = ("--requirepass", PASSWORD)
    redis_server.kill()
    redis_server.start()
    async with Stack(tmp_path, redis_server.url.replace("//", f"//:{PASSWORD}@")) as stack:
        (tmp_path / "broken.py").write_text(BROKEN)
        monkeypatch.syspath_prepend(tmp_path)
        stack.configure(ACCOUNTS + SINK + MORE.format(**IN_THE_FILE))
        await stack.start()
        shown = {"settings": repr(settings.load(stack.environ, tmp_path))}

        good, late = heard("call_1"), heard("call_2")
        stack.vendor.records["/v2/get-call/call_1"] = json.loads(good)["call"]
        stack.vendor.faults["/v2/get-call/call_2"] = [lambda: web.Response(status=500, text=late.decode())]
        for account, body in (
            ("clinic", good),
            ("clinic", late),
            ("parcel", fixture("cartesia", "call_completed")),
            ("ferry", fixture("ultravox", "call.ended")),
        ):
            assert (await stack.post(account, body))[0] == 204

        key = KEYS["RETELL_KEY"]
        wrong_key = sign_retell(good, key="key_other")
        private_key = heard("call_2", start_timestamp={"Okonjo saffron": [NUMBERS[0]]})
        bad: dict[str, tuple[str, bytes, dict[str, str] | None]] = {
            "another key": ("clinic", good, wrong_key),
            "the key in the wrong header": (
                "clinic",
                good,
                {**wrong_key, "authorization": f"Bearer {key}", "x-key": key},
            ),
            "the key in the signature": ("clinic", good, {"x-retell-signature": f"v={key},d={SECRET}"}),
            "the key in the query": (f"clinic?key={key}&from={NUMBERS[0]}", good, wrong_key),
            "the key in the path": (key, good, wrong_key),
            "a number for an account": (NUMBERS[0], good, wrong_key),
            "an encoded number for an account": (f"%2B{NUMBERS[1]}/saffron", good, wrong_key),
            "another shared secret": ("parcel", good, {"x-webhook-secret": key}),
            "no signature": ("ferry", good, {}),
            "too old": ("clinic", heard("call_3"), sign_retell(heard("call_3"), at=time.time() - 999)),
            "replayed": ("clinic", good, sign_retell(good, at=time.time() - 999)),
            "a garbled time": ("ferry", good, {**sign_ultravox(good), "x-ultravox-webhook-timestamp": NUMBERS[0]}),
            "half a body": ("clinic", good[:-9], None),
            "other types": ("clinic", private_key, None),
            "a list for an id": (
                "clinic",
                json.dumps({"event": "call_ended", "call": {"call_id": WORDS}}).encode(),
                None,
            ),
            "an unknown coding": ("clinic", good, {**wrong_key, "content-encoding": key}),
            "a plug-in that fails": ("broken", good, sign_retell(good, key=IN_THE_FILE["api_key"])),
        }
        for name, (account, body, headers) in bad.items():
            shown[f"answer to {name}"] = json.dumps(await stack.post(account, body, headers))
        for request in (
            f"{key} saffron\r\n\r\n",
            f"GET /{NUMBERS[0]}?key={key} HTTP/1.1\r\nconnection: close\r\n\r\n",
            f"POST /webhooks/clinic HTTP/1.1\r\nx-key: {key}\0\r\n\r\n",
            f"POST /webhooks/clinic HTTP/1.1\r\n{key}: {'saffron' * 10_000}\r\n\r\n",
            f"POST /webhooks/clinic HTTP/1.1\r\nconnection: upgrade\r\nupgrade: {key}\r\n\r\n",
            f"POST /webhooks/clinic HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{key}\r\n",
        ):
            shown[f"answer to {request[:60]!r}"] = await raw(stack, request)
        for path in ("/readyz", "/metrics", "/schema/openapi.json", f"/readyz?key={key}&from={NUMBERS[0]}"):
            shown[path] = await get(stack, path)
        await stack.receiver.until(1)
        async with asyncio.timeout(30):
            while not all(words in stack.log("worker.log") for words in ('"record_deferred"', '"outcome": "dead"')):
                await asyncio.sleep(0.02)

        shown["processes"] = shown_by_processes(stack)
        redis_server.kill()
        shown["answer without Redis"] = json.dumps(await stack.post("clinic", heard("call_4")))
        shown["/readyz without Redis"] = await get(stack, "/readyz")
        for log in ("service.log", "worker.log"):
            shown[log] = stack.log(log)

    assert '"webhook_failed"' in shown["service.log"]
    for where, text in shown.items():
        assert [private for private in PRIVATE if private in text] == [], where
