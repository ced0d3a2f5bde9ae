import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any, get_args

import httpx
import msgspec
import pytest

from aftercall.call import Analysis, Call, End, EndReason, Recording
from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.sinks.hubspot import CALLER, HubSpot
from aftercall.sinks.hubspot_numbers import has_number, national
from aftercall.testing import HttpSinkContract
from aftercall.testing.destination import Answer, Destination
from tests.samples import a_call, a_delivery, an_event
from tests.sinks.fake_hubspot import TOKEN, FakeHubSpot

ID = "aftercall_call_id"
ADA = {"phone": "(555) 010-0123", "hs_searchable_calculated_phone_number": "5550100123"}  # a_call's caller


class Portal:
    """The fake, and a sink that leads there."""

    def __init__(self, destination: Destination, http: httpx.AsyncClient) -> None:
        self.fake = FakeHubSpot(("calls", ID), ("contacts", CALLER))
        self.destination, self._http = destination, http
        destination.answers = self.fake

    def sink(self, **options: Any) -> HubSpot:
        options = {"token": TOKEN, "base_url": self.destination.url, **options}
        return HubSpot("crm", msgspec.convert(options, HubSpot.Config), self._http)

    async def logged(self, call: Call, **options: Any) -> dict[str, str]:
        await self.sink(**options).deliver(a_delivery(an_event(call=call)))
        return self.fake.calls[-1]

    @property
    def contacts_of_calls(self) -> list[str]:
        return [contact for _, contact in sorted(self.fake.associations)]


@pytest.fixture
async def portal() -> AsyncIterator[Portal]:
    destination = Destination()
    await destination.start()
    async with make_client(guarded=False) as http:
        yield Portal(destination, http)
    await destination.stop()


async def refused(sink: HubSpot) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(a_delivery())
    return caught.value


# The engagement


async def test_a_call_is_an_engagement_with_all_that_is_known_of_it(portal: Portal) -> None:
    receipt = await portal.sink().deliver(a_delivery(an_event(type="call.settled")))

    [(id_, engagement)] = portal.fake.objects["calls"].items()
    assert receipt == id_
    body = engagement.pop("hs_call_body")
    assert engagement == {
        ID: "retell/acme/call_7f3",
        "hs_timestamp": "2026-11-20T12:05:00.000Z",
        "hs_call_title": "Call settled: successful · Front desk",
        "hs_call_status": "COMPLETED",
        "hs_call_direction": "INBOUND",
        "hs_call_duration": "185400",
        "hs_call_from_number": "+15550100123",
        "hs_call_to_number": "+15550100177",
        "hs_call_recording_url": "https://media.example.com/7f3.wav",
    }
    for told in ("Mirela Okafor moved her fitting to Tuesday.", "<br>Agent: Tuesday at ten it is.", "End: user hangup"):
        assert told in body


async def test_the_time_is_when_the_call_began(portal: Portal) -> None:
    engagement = await portal.logged(a_call(started_at="2026-11-20T12:01:54.600Z"))

    assert engagement["hs_timestamp"] == "2026-11-20T12:01:54.600Z"


async def test_what_was_said_is_no_html(portal: Portal) -> None:
    said = '<img src=x onerror=alert(1)> & "tea"\nfor <b>two</b>'

    engagement = await portal.logged(a_call(analysis=Analysis(summary=said)))

    escaped = "&lt;img src=x onerror=alert(1)&gt; &amp; &quot;tea&quot;<br>for &lt;b&gt;two&lt;/b&gt;"
    assert escaped in engagement["hs_call_body"]


async def test_the_users_own_wording_is_html_and_its_values_are_none(portal: Portal) -> None:
    template = "<h3>{{ call.agent.name }}</h3><p>{{ call.analysis.summary }}</p>"

    engagement = await portal.logged(a_call(analysis=Analysis(summary="<b>bold</b>")), template=template)

    assert engagement["hs_call_body"] == "<h3>Front desk</h3><p>&lt;b&gt;bold&lt;/b&gt;</p>"


async def test_a_body_is_no_longer_than_hubspot_allows(portal: Portal) -> None:
    engagement = await portal.logged(a_call(), template="🧵" * 40_000)

    assert engagement["hs_call_body"] == "🧵" * 32_767 + "…"


@pytest.mark.parametrize("url", ["http://media.example.com/7f3.wav", "https://", "https://media.example.com/a b.wav"])
async def test_a_recording_that_hubspot_would_refuse_is_in_the_text_alone(portal: Portal, url: str) -> None:
    engagement = await portal.logged(a_call(recording=Recording(url=url)))

    assert "hs_call_recording_url" not in engagement
    assert f"Recording: {url}" in engagement["hs_call_body"]


@pytest.mark.parametrize("reason", get_args(EndReason))
async def test_every_reason_of_an_end_is_a_status_of_hubspot(portal: Portal, reason: Any) -> None:
    engagement = await portal.logged(a_call(end=End(reason=reason)))

    never = {"no_answer": "NO_ANSWER", "declined": "NO_ANSWER", "unjoined": "NO_ANSWER", "busy": "BUSY"}
    failed = ("dial_failed", "limit_reached", "blocked", "agent_error", "provider_error", "telephony_error")
    expected = never | {"cancelled": "CANCELED"} | dict.fromkeys(failed, "FAILED")
    assert engagement["hs_call_status"] == expected.get(reason, "COMPLETED")


@pytest.mark.parametrize(
    ("status", "expected"),
    [("created", "QUEUED"), ("ongoing", "IN_PROGRESS"), ("ended", "COMPLETED"), ("failed", "FAILED")],
)
async def test_a_call_without_an_end_has_the_status_it_is_in(portal: Portal, status: Any, expected: str) -> None:
    assert (await portal.logged(a_call(end=None, status=status)))["hs_call_status"] == expected


async def test_a_duration_below_nothing_is_none(portal: Portal) -> None:
    assert (await portal.logged(a_call(duration_ms=-5_000)))["hs_call_duration"] == "0"


async def test_of_an_unknown_direction_nothing_is_said(portal: Portal) -> None:
    assert "hs_call_direction" not in await portal.logged(a_call(direction=None))


# Several events of a call


async def test_every_event_of_a_call_updates_the_one_engagement(portal: Portal) -> None:
    sink = portal.sink()
    first = await sink.deliver(a_delivery(an_event(sequence=2, call=a_call(analysis=None))))
    second = await sink.deliver(a_delivery(an_event(id="evt_later", sequence=3)))

    assert first == second
    [engagement] = portal.fake.calls
    assert "Mirela Okafor" in engagement["hs_call_body"]


async def test_an_older_event_does_not_overwrite_a_later_one(portal: Portal) -> None:
    sink = portal.sink()
    await sink.deliver(a_delivery(an_event(id="evt_later", sequence=3)))
    [before] = [dict(engagement) for engagement in portal.fake.calls]

    await sink.deliver(a_delivery(an_event(sequence=2, call=a_call(analysis=None, duration_ms=1))))

    assert portal.fake.calls == [before]


async def test_of_two_events_at_once_the_older_does_not_overwrite_the_later_one(portal: Portal) -> None:
    one, other = portal.sink(), portal.sink()  # of two workers
    other.memory = one.memory
    older, later = an_event(sequence=2, call=a_call(duration_ms=1)), an_event(id="evt_later", sequence=3)
    meanwhile: list[str | BaseException] = []
    upsert = one._api.upsert

    async def slowly(kind: str, body: object) -> str:
        meanwhile.extend(await asyncio.gather(other.deliver(a_delivery(later)), return_exceptions=True))
        return await upsert(kind, body)

    one._api.upsert = slowly
    await one.deliver(a_delivery(older))

    [error] = meanwhile
    assert isinstance(error, SinkError)
    assert (error.permanent, error.retry_after) == (False, 1.0)
    await other.deliver(a_delivery(later, attempt=2))
    assert [engagement["hs_call_duration"] for engagement in portal.fake.calls] == ["185400"]


async def test_a_call_of_the_same_id_in_another_account_is_another_call(portal: Portal) -> None:
    for account in ("acme", "clinic"):
        await portal.logged(a_call(account=account))

    assert [engagement[ID] for engagement in portal.fake.calls] == ["retell/acme/call_7f3", "retell/clinic/call_7f3"]


# The contact


async def test_the_call_is_with_the_contact_who_has_the_number(portal: Portal) -> None:
    portal.fake.add("contacts", phone="+49 30 5550100123", hs_searchable_calculated_phone_number="305550100123")
    ada = portal.fake.add("contacts", **ADA)

    await portal.logged(a_call())

    assert portal.contacts_of_calls == [ada]


async def test_of_an_outbound_call_it_is_who_was_called(portal: Portal) -> None:
    portal.fake.add("contacts", **ADA)
    called = portal.fake.add("contacts", mobilephone="+15550100177")

    await portal.logged(a_call(direction="outbound"))

    assert portal.contacts_of_calls == [called]


async def test_the_same_local_number_in_another_country_is_not_that_contact(portal: Portal) -> None:
    elsewhere = {**ADA, "hs_calculated_phone_number": "+495550100123"}
    portal.fake.add("contacts", **elsewhere)

    await portal.logged(a_call())

    assert portal.contacts_of_calls == []


async def test_where_several_have_the_number_nobody_is_guessed(portal: Portal) -> None:
    for _ in range(2):
        portal.fake.add("contacts", **ADA)

    await portal.logged(a_call(), create_contacts=True)

    assert portal.contacts_of_calls == []
    assert len(portal.fake.objects["contacts"]) == 2


@pytest.mark.parametrize("number", [None, "anonymous", "sip:ada@example.com", "5550100123", "+0123456789"])
async def test_what_is_no_international_number_is_not_looked_for(portal: Portal, number: str | None) -> None:
    portal.fake.add("contacts", **ADA)

    await portal.logged(a_call(from_=number))

    assert len(portal.destination.sent) == 1


async def test_contacts_are_not_looked_for_unless_wanted(portal: Portal) -> None:
    portal.fake.add("contacts", **ADA)

    await portal.logged(a_call(), contacts=False)

    assert [sent.path for sent in portal.destination.sent] == ["/crm/v3/objects/calls/batch/upsert"]


async def test_a_contact_is_created_only_if_wanted(portal: Portal) -> None:
    await portal.logged(a_call())
    assert portal.fake.objects["contacts"] == {}

    await portal.logged(a_call(), create_contacts=True)
    assert list(portal.fake.objects["contacts"].values()) == [{"phone": "+15550100123", CALLER: "+15550100123"}]
    assert portal.contacts_of_calls == [*portal.fake.objects["contacts"]]


async def test_many_calls_of_a_stranger_create_one_contact_also_at_once(portal: Portal) -> None:
    sink = portal.sink(create_contacts=True)
    events = [an_event(id=f"evt_{n}", call=a_call(id=f"call_{n}")) for n in range(8)]

    await asyncio.gather(*(sink.deliver(a_delivery(event)) for event in events))

    [contact] = portal.fake.objects["contacts"]
    assert portal.contacts_of_calls == [contact] * 8


async def test_a_created_contact_whose_number_was_corrected_is_still_that_caller(portal: Portal) -> None:
    known = portal.fake.add("contacts", **{CALLER: "+15550100123", "phone": "+15550100199"})

    await portal.logged(a_call(), create_contacts=True)

    assert portal.contacts_of_calls == [known]
    assert portal.fake.objects["contacts"][known]["phone"] == "+15550100199"


async def test_a_contact_that_has_gone_since_the_search_does_not_hold_the_call_up(portal: Portal) -> None:
    ada = portal.fake.add("contacts", **ADA)
    portal.fake.answer_instead = lambda sent: Answer(404, {}) if sent.method == "PUT" else None

    assert (await portal.logged(a_call()))[ID]
    assert (portal.contacts_of_calls, ada in portal.fake.objects["contacts"]) == ([], True)


@pytest.mark.parametrize(
    ("number", "local"),
    [
        ("+15550100123", "5550100123"),
        ("+79035550123", "9035550123"),
        ("+493055501234", "3055501234"),
        ("+390655501234", "0655501234"),
        ("+201055501234", "1055501234"),
        ("+41445550123", "445550123"),
        ("+353155501234", "155501234"),
        ("+2125550123", "5550123"),
        ("+9715550123", "5550123"),
        ("+85255501234", "55501234"),
    ],
)
def test_a_number_is_known_without_its_country(number: str, local: str) -> None:
    assert national(number) == local
    assert has_number({"phone": local}, number)
    assert has_number({"mobilephone": f"0{local[:3]}/{local[3:]}"}, number)
    assert has_number({"phone": f"00{number[1:]}"}, number)
    assert not has_number({"phone": f"9{local}", "mobilephone": None}, number)


# Refusals


async def test_a_missing_property_is_refused_with_the_remedy(portal: Portal) -> None:
    del portal.fake.properties["calls"][ID]

    error = await refused(portal.sink())

    assert (error.permanent, "run `aftercall sinks migrate`" in str(error)) == (True, True)


async def test_another_refusal_does_not_name_that_remedy(portal: Portal) -> None:
    del portal.fake.properties["calls"]["hs_call_duration"]

    error = await refused(portal.sink())

    assert (error.permanent, str(error)) == (True, "HTTP 400")


async def test_a_wrong_token_is_refused_for_good(portal: Portal) -> None:
    error = await refused(portal.sink(token="pat-eu1-other"))

    assert (error.permanent, str(error)) == (True, "HTTP 401")


@pytest.mark.parametrize(
    ("category", "permanent"), [("VALIDATION_ERROR", True), ("CONFLICT", False), ("RATE_LIMITS", False)]
)
async def test_a_partial_error_is_no_delivery(portal: Portal, category: str, permanent: bool) -> None:
    portal.fake.partial = {"status": "error", "category": category, "message": "of Mirela"}

    error = await refused(portal.sink())

    assert (error.permanent, str(error)) == (permanent, "HubSpot did not take one of the calls")
    assert portal.fake.calls == []


@pytest.mark.parametrize(
    ("policy", "seconds"), [("DAILY", 3600.0), ("TEN_SECONDLY_ROLLING", 10.0), ("SECONDLY", 1.0), (None, 1.0)]
)
async def test_a_limit_says_how_long_to_wait(portal: Portal, policy: str | None, seconds: float) -> None:
    body = {"status": "error", "message": "You have reached your limit.", "policyName": policy}
    portal.fake.answer_instead = lambda _: Answer(429, json.dumps(body))

    error = await refused(portal.sink())

    assert (error.permanent, error.retry_after) == (False, seconds)


async def test_a_search_over_its_limit_is_tried_again_and_the_call_is_there_once(portal: Portal) -> None:
    sink, ada = portal.sink(), portal.fake.add("contacts", **ADA)
    portal.fake.answer_instead = lambda sent: Answer(429, "{}") if sent.path.endswith("/search") else None
    assert (await refused(sink)).retry_after == 1.0

    portal.fake.answer_instead = lambda _: None
    await sink.deliver(a_delivery(attempt=2))

    assert len(portal.fake.calls) == 1
    assert portal.contacts_of_calls == [ada]


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"[]", b'{"results": [{"id": null}]}', b"\xff", b""])
async def test_an_answer_that_is_not_hubspots_is_no_delivery(portal: Portal, body: bytes) -> None:
    portal.fake.answer_instead = lambda _: Answer(200, body)

    error = await refused(portal.sink())

    assert (error.permanent, str(error)) == (False, "the answer is not HubSpot's; check base_url")


async def test_a_template_that_cannot_be_applied_is_refused_for_good(portal: Portal) -> None:
    error = await refused(portal.sink(template="{{ call.duration_ms + call.id }}"))

    assert error.permanent
    assert "the template cannot be applied" in str(error)


# migrate, erase


async def test_migrate_creates_the_property_once(portal: Portal) -> None:
    del portal.fake.properties["calls"][ID]
    sink = portal.sink()

    assert await sink.migrate() == [f"created the unique property {ID} of calls"]
    assert await sink.migrate() == []

    await sink.deliver(a_delivery())
    assert len(portal.fake.calls) == 1


async def test_migrate_creates_the_contacts_property_where_contacts_are_created(portal: Portal) -> None:
    portal.fake.properties["calls"].pop(ID), portal.fake.properties["contacts"].pop(CALLER)

    done = await portal.sink(create_contacts=True, id_property="ours").migrate()

    assert done == ["created the unique property ours of calls", f"created the unique property {CALLER} of contacts"]
    assert portal.fake.properties["calls"]["ours"]
    assert portal.fake.properties["contacts"][CALLER]


async def test_migrate_does_not_take_a_property_that_is_not_unique_for_its_own(portal: Portal) -> None:
    portal.fake.properties["calls"][ID] = False

    with pytest.raises(SinkError, match="is there, but not unique") as caught:
        await portal.sink().migrate()

    assert caught.value.permanent


async def test_a_property_that_another_created_meanwhile_does_no_harm(portal: Portal) -> None:
    portal.fake.groups.add(("calls", "aftercall"))
    portal.fake.answer_instead = lambda sent: Answer(404, {}) if sent.method == "GET" else None

    assert await portal.sink().migrate() == [f"created the unique property {ID} of calls"]


async def test_an_erased_call_goes_into_the_bin_and_may_be_written_again(portal: Portal) -> None:
    sink = portal.sink()
    await sink.deliver(a_delivery(an_event(sequence=3)))

    await sink.erase(a_call())

    assert portal.fake.calls == []
    assert [engagement[ID] for engagement in portal.fake.bin.values()] == ["retell/acme/call_7f3"]
    await sink.deliver(a_delivery(an_event(sequence=2)))
    assert len(portal.fake.calls) == 1


async def test_a_call_that_could_not_be_looked_for_is_not_taken_for_erased(portal: Portal) -> None:
    errors = {"results": [], "errors": [{"category": "INTERNAL_ERROR"}]}
    portal.fake.answer_instead = lambda _: Answer(207, errors)

    with pytest.raises(SinkError) as caught:
        await portal.sink().erase(a_call())

    assert not caught.value.permanent


# The options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "ftp://example.com"}, "base_url: expected http:// or https:// and a host"),
        ({"contacts": False, "create_contacts": True}, "create_contacts: needs contacts = true"),
        ({"id_property": "Our Id"}, "id_property"),
        ({"token": ""}, "token"),
        ({"template": "{{ call.nobody }}"}, "template: call has no nobody"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert({"token": TOKEN, **options}, HubSpot.Config)


class TestContract(HttpSinkContract):
    sink = HubSpot

    async def start(self) -> None:
        await super().start()
        self.portal = FakeHubSpot(("calls", ID), ("contacts", CALLER))
        self.destination.answers = self.portal

    async def options(self) -> dict[str, Any]:
        return {"token": TOKEN, "base_url": self.destination.url, "create_contacts": True}

    async def received(self) -> Iterable[str]:
        return [json.dumps(engagement) for engagement in self.portal.calls]
