"""A provider outside the package: what a third party writes is held to the same contract, installed, found and run."""

import hashlib
import hmac
import json
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from aftercall.call import End, Tool, Turn
from aftercall.providers.base import Account
from aftercall.testing import ProviderContract
from tests.stack import SINK, Stack

PACKAGE = Path(__file__).parents[1] / "plugins" / "aftercall_elevenlabs"
FIXTURES = PACKAGE / "fixtures"
SECRET = "wsec_beacon-7741"


def load() -> ModuleType:
    spec = spec_from_file_location("aftercall_elevenlabs", PACKAGE / "aftercall_elevenlabs.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ElevenLabs = load().ElevenLabs
PROVIDER = ElevenLabs(Account(name="museum", provider="elevenlabs", api_key="key", webhook_secrets=(SECRET,)))


def sign(body: bytes, secret: str, now: float) -> dict[str, str]:
    signed = f"{int(now)}.".encode() + body
    return {"ElevenLabs-Signature": f"t={int(now)},v0={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"}


class TestElevenLabs(ProviderContract):
    provider = ElevenLabs
    fixtures = FIXTURES
    ignored = ("post_call_audio",)
    secret_keys = ("conversation_config_override", "secret__ticket_token", "authorization_method")
    routes = {
        "GET /v1/convai/conversations": ["rest.list_calls.page1", "rest.list_calls.page2"],
        "/v1/convai/conversations/{conversation_id}": "rest.get_call",
        "DELETE /v1/convai/conversations/{conversation_id}": [],
    }

    def signed(self, body: bytes, secret: str, now: float) -> dict[str, str]:
        return sign(body, secret, now)


def body(name: str) -> bytes:
    return (FIXTURES / f"{name}.json").read_bytes()


def test_a_conversation_becomes_a_call() -> None:
    [webhook] = PROVIDER.decode(body("post_call_transcription"))
    call = PROVIDER.normalize(webhook, json.loads(body("rest.get_call")))

    assert (webhook.type, call.status, call.channel, call.direction) == ("call.analyzed", "ended", "phone", "inbound")
    assert (call.from_, call.to, call.agent.name) == ("+15550100123", "+15550100177", "Museum desk")
    assert call.end == End(reason="agent_hangup", by="agent", provider_reason="end_call tool was called.")
    assert (call.started_at, call.ended_at) == ("2026-11-18T08:25:02.000Z", "2026-11-18T08:25:49.000Z")
    assert call.duration_ms == 47_000
    assert call.analysis is not None
    assert (call.analysis.successful, call.analysis.custom) == (True, {"visitors": 3})
    assert call.variables == {"visitor": "Tove"}
    assert call.transcript is not None
    assert [turn.role for turn in call.transcript] == ["agent", "user", "agent", "tool", "agent", "tool"]
    assert call.transcript[2] == Turn(role="agent", text="Let me look", start_ms=9000, interrupted=True)
    assert call.transcript[3].tool == Tool(
        id="req_hours", name="opening_hours", arguments={"day": "monday"}, result='{"open": "10:00"}', ok=True
    )


def test_credits_are_not_dollars() -> None:
    record = json.loads(body("rest.get_call"))
    [webhook] = PROVIDER.decode(body("post_call_transcription"))
    assert record["metadata"]["cost"] == 312
    assert PROVIDER.normalize(webhook, record).cost is None


def test_a_call_that_nobody_took_says_why() -> None:
    [webhook] = PROVIDER.decode(body("call_initiation_failure"))
    call = PROVIDER.normalize(webhook, None)
    assert (webhook.type, call.status, call.channel) == ("call.ended", "failed", "phone")
    assert call.end == End(reason="no_answer", provider_reason="no-answer")
    assert (call.direction, call.from_, call.to) == ("outbound", "+15550100177", "+15550100142")


def test_a_deleted_transcript_is_told() -> None:
    record = json.loads(body("rest.get_call.deleted"))
    [webhook] = PROVIDER.decode(body("post_call_transcription"))
    assert PROVIDER.is_deleted(record)
    assert not PROVIDER.is_deleted(json.loads(body("rest.get_call")))
    assert PROVIDER.normalize(webhook, record).privacy.redacted_at == "2026-11-19T08:25:51.000Z"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Where pip has installed the package, without the network."""
    target, source = tmp_path / "site", tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "aftercall_elevenlabs.py"):
        (source / name).write_bytes((PACKAGE / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(source)], check=True)
    return target


async def test_an_installed_plug_in_is_found_by_its_entry_point_and_delivers(stack: Stack, installed: Path) -> None:
    account = (
        '[accounts.museum]\nprovider = "elevenlabs"\napi_key = "key-beacon"\n'
        f'webhook_secrets = ["{SECRET}"]\nbase_url = "%(vendor)s"\n'
    )
    stack.configure(account + SINK)
    stack.python_path.append(str(installed))
    record = json.loads(body("rest.get_call"))
    path = f"/v1/convai/conversations/{record['conversation_id']}"
    stack.vendor.records[path] = record
    await stack.start()

    sent = body("post_call_transcription")
    for _ in range(2):
        status, problem, _ = await stack.post("museum", sent, sign(sent, SECRET, time.time()))
        assert status == 204, problem
    forged, _, _ = await stack.post("museum", sent, sign(sent, "wsec_other", time.time()))
    [event] = await stack.receiver.until(1)

    assert forged == 401
    assert stack.vendor.headers[path]["xi-api-key"] == "key-beacon"
    assert (event["source"], event["type"], event["subject"]) == (
        "/elevenlabs/museum", "call.analyzed", record["conversation_id"],
    )  # fmt: skip
    assert event["data"]["complete"] is True
    assert event["data"]["call"]["agent"]["name"] == "Museum desk"
    assert event["data"]["call"]["transcript"][3]["tool"]["ok"] is True
