"""Calls and events to try things on. The people and numbers in them are invented."""

from typing import Any

import msgspec

from aftercall.call import Agent, Analysis, Call, Cost, End, Recording, Turn
from aftercall.event import CallEvent, EventData, encode
from aftercall.sinks.base import Delivery
from aftercall.states import Progress

_CALL = Call(
    id="call_7f3",
    provider="retell",
    account="acme",
    agent=Agent(id="agent_1", name="Front desk"),
    channel="phone",
    direction="inbound",
    from_="+15550100123",
    to="+15550100177",
    status="ended",
    end=End(reason="user_hangup", by="user", provider_reason="caller_left"),
    duration_ms=185_400,
    transcript=[
        Turn(role="agent", text="Okafor Tailors, good morning."),
        Turn(role="user", text="Grüezi, could I come\nTuesday instead?"),
        Turn(role="tool", text='{"slot": "tue"}'),
        Turn(role="agent", text="Tuesday at ten it is."),
    ],
    analysis=Analysis(summary="Mirela Okafor moved her fitting to Tuesday.", sentiment="positive", successful=True),
    cost=Cost(total="0.2140"),
    recording=Recording(url="https://media.example.com/7f3.wav"),
)


def a_call(**changes: Any) -> Call:
    """An ended call of which much is known; `changes` replace its fields."""
    return msgspec.structs.replace(_CALL, **changes)


def an_event(**changes: Any) -> CallEvent:
    """That call's end; `changes` replace fields of the event or of its data: `type=`, `complete=`, `call=` …"""
    data: dict[str, Any] = {"received_at": "2026-11-20T12:05:01.120Z", "sequence": 2, "call": a_call()}
    data |= {name: changes.pop(name) for name in EventData.__struct_fields__ if name in changes}
    call = data["call"]
    event = CallEvent(
        id="evt_lantern",
        source=f"/{call.provider}/{call.account}",
        type="call.ended",
        subject=call.id,
        time="2026-11-20T12:05:00.000Z",
        data=EventData(**data),
    )
    return msgspec.structs.replace(event, **changes)


def a_progress(**changes: Any) -> Progress:
    """That of an event that says nothing of its call's end."""
    known = {"provider": "retell", "account": "clinic", "call_id": "call_1", "type": "call.started"}
    return Progress(**{**known, **changes})


def a_delivery(event: CallEvent | None = None, *, attempt: int = 1) -> Delivery:
    """An event as the worker hands it to a sink."""
    event = event or an_event()
    return Delivery(event=event, body=encode(event), attempt=attempt)
