"""An event in which everything is known: `aftercall sinks test` sends it, and expressions are tried on it at start."""

from datetime import UTC, datetime

from aftercall.call import (
    Agent,
    Analysis,
    Call,
    Cost,
    CostItem,
    End,
    Percentiles,
    Privacy,
    Recording,
    Tool,
    Turn,
)
from aftercall.enrich import enrich
from aftercall.event import CallEvent, EventData, EventType, event_id, rfc3339

SUMMARY = (
    "This is a test event of aftercall: no such call was made. Ines Varga asked for a later delivery of her piano."
)


def example_event(
    type_: EventType = "call.settled",
    *,
    call_id: str = "test_call",
    provider: str = "retell",
    account: str = "test",
    moment: datetime | None = None,
) -> CallEvent:
    """The event; `tags.test` and `call.metadata.test` are what tells it from a real one. People in it are invented."""
    moment = moment or datetime.now(UTC)
    now = rfc3339(moment)
    call = Call(
        id=call_id,
        provider=provider,
        account=account,
        agent=Agent(id="agent_test", name="Test agent", version="3"),
        channel="phone",
        direction="inbound",
        from_="+15550100142",
        to="+15550100199",
        status="ended",
        end=End(reason="user_hangup", by="user", provider_reason="user_hangup"),
        started_at=rfc3339(datetime.fromtimestamp(moment.timestamp() - 96, UTC)),
        ended_at=now,
        duration_ms=96_000,
        transcript=[
            Turn(role="agent", text="Harbour Removals, how can I help?", start_ms=0, end_ms=2_100),
            Turn(role="user", text="Could the piano come on Friday instead?", start_ms=2_900, end_ms=5_200),
            Turn(
                role="tool",
                start_ms=5_300,
                end_ms=6_100,
                tool=Tool(id="tool_1", name="move_slot", arguments={"day": "friday"}, result="moved", ok=True),
                latency={"tool_ms": 800},
            ),
            Turn(role="agent", text="Friday at ten is yours.", start_ms=6_900, end_ms=8_800, interrupted=False),
        ],
        analysis=Analysis(
            summary=SUMMARY, sentiment="positive", successful=True, voicemail=False, custom={"topic": "delivery"}
        ),
        cost=Cost(total="0.1432", items=[CostItem(name="voice", amount="0.1432")]),
        latency={"e2e": Percentiles(p50=740, p90=980, p95=1_100, p99=1_300, min=610, max=1_300, count=2)},
        recording=Recording(url="https://media.example.com/test_call.wav", expires_at=now),
        log_url="https://media.example.com/test_call.log",
        error="none: this is a test",
        privacy=Privacy(storage="full", redacted_at=now),
        metadata={"test": True},
        variables={"customer": "Ines Varga"},
    )
    return CallEvent(
        id=event_id(provider, account, f"test:{call_id}:{type_}:{now}"),
        source=f"/{provider}/{account}",
        type=type_,
        subject=call_id,
        time=now,
        data=EventData(
            provider_event="test", via="webhook", received_at=now, sequence=1, tags={"test": "true"}, call=enrich(call)
        ),
    )
