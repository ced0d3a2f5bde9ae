"""One `call.settled` a call, the same whatever came when, came twice, or did not come."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis import Redis

from aftercall.call import Call
from simulator.calls import event_type, make_calls
from simulator.parts import Call as SimulatedCall
from simulator.parts import Webhook
from tests.inside import inside

CALLS = make_calls(seed=5, now=time.time())
TELLS_THE_END = ("call.ended", "call.analyzed", "call.billed")
every_call = pytest.mark.parametrize(
    "number", range(len(CALLS)), ids=[f"{call.provider}: {call.story}" for call in CALLS]
)


def facts(call: SimulatedCall) -> list[Webhook]:
    return [webhook for webhook in call.webhooks if webhook.is_fact]


def type_of(call: SimulatedCall, webhook: Webhook) -> str:
    return event_type(call.provider, webhook.event)


async def settled_after(redis_url: str, directory: Path, call: SimulatedCall, told: list[Webhook]) -> Call:
    """The call of the one settled event that comes of these webhooks, in this order."""
    async with inside(redis_url, directory, [call]) as aftercall:
        for webhook in told:
            await aftercall.receive(call, webhook)
            await aftercall.work()
        for webhook in facts(call):
            aftercall.records.show(call, webhook)
        await aftercall.finish()
        (settled,) = aftercall.of(call.id, "call.settled")
        assert settled.data.via == "settle"
        assert settled.data.provider_event is None
        assert settled.data.complete
        assert Counter(event.data.sequence for event in aftercall.events) == Counter(
            range(1, len(aftercall.events) + 1)
        )
        await aftercall.finish()
        assert len(aftercall.of(call.id, "call.settled")) == 1
        return settled.data.call


@every_call
@settings(
    max_examples=12, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.lists(st.integers(0, 99), min_size=1, max_size=8))
def test_any_order_and_any_part_of_a_calls_events_settle_once_and_tell_the_same(
    number: int, order: list[int], valkey_url: str, tmp_path: Path
) -> None:
    call = CALLS[number]
    known = facts(call)
    told = [known[place % len(known)] for place in order]
    if not any(type_of(call, webhook) in TELLS_THE_END for webhook in told):
        told.append(next(webhook for webhook in known if type_of(call, webhook) == "call.ended"))

    def settle(webhooks: list[Webhook]) -> Call:
        Redis.from_url(valkey_url).flushall()
        return asyncio.run(settled_after(valkey_url, tmp_path, call, webhooks))

    assert settle(told) == settle(known)
