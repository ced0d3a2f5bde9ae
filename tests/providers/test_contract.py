"""Each built-in provider keeps the contract that a third party's keeps: `aftercall.testing` on its own fixtures."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from aftercall.plugins import PROVIDERS, provider_class
from aftercall.testing import ProviderContract
from simulator.signing import HEADERS

FIXTURES = Path(__file__).parents[1] / "fixtures"


class BuiltIn(ProviderContract):
    def signed(self, body: bytes, secret: str, now: float) -> dict[str, str]:
        return HEADERS[self.provider.name](body, secret, now)


class TestRetell(BuiltIn):
    provider = provider_class("retell")
    fixtures = FIXTURES / "retell"
    ignored = ("call_inbound", "chat_*")
    body_is_identity = (
        *("transcript_updated", "transfer_started", "transfer_bridged", "transfer_cancelled", "transfer_ended"),
    )
    secret_keys = ("access_token", "custom_sip_headers")
    routes = {"/v2/get-call/{call_id}": "rest.get_call", "/v3/list-calls": "rest.v3_list_calls"}


class TestCartesia(BuiltIn):
    provider = provider_class("cartesia")
    fixtures = FIXTURES / "cartesia"
    secret_keys = ("parameters", "headers")
    routes = {
        "/agents": "rest.list_agents",
        "/v1/agents": "rest.list_agents.v1",
        "/agents/calls": ["rest.list_calls", "rest.list_calls.last"],
        "/agents/calls/{call_id}": "rest.get_call",
        "DELETE /agents/calls/{call_id}": "rest.delete_call",
    }


class TestUltravox(BuiltIn):
    provider = provider_class("ultravox")
    fixtures = FIXTURES / "ultravox"
    secret_keys = (
        "joinUrl", "systemPrompt", "callbacks", "headers", "additionalParams", "initialState", "requestContext",
        "dataConnectionConfig",
    )  # fmt: skip
    routes = {
        "/api/calls/{call_id}": "rest.get_call",
        "/api/calls/{call_id}/messages": ["rest.messages.page1", "rest.messages.page2"],
        "/api/calls": ["rest.list_calls.page1", "rest.list_calls.page2"],
        "/api/deleted_calls": ["rest.deleted_calls.page1", "rest.deleted_calls.page2"],
    }


def contracts(kind: type[ProviderContract] = ProviderContract) -> Iterator[type[ProviderContract]]:
    for below in kind.__subclasses__():
        yield below
        yield from contracts(below)


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_is_held_to_the_contract(name: str) -> None:
    held = [kind for kind in contracts() if vars(kind).get("provider") is provider_class(name)]
    assert held, f"write a subclass of BuiltIn here with provider = provider_class({name!r})"
