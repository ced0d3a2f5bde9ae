"""`aftercall sinks show, test, render, migrate`: a sink alone, as an operator looks at it. None of it has a Redis."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from click.testing import CliRunner, Result
from standardwebhooks.webhooks import Webhook as StandardWebhook

from aftercall.attempt import sink_error
from aftercall.cli import aftercall, output
from aftercall.errors import SinkError
from aftercall.plugins import SINKS, sink_class
from aftercall.settings import ENVIRONMENT
from aftercall.sink_settings import CommonOptions
from aftercall.testing.destination import Destination
from tests.samples import a_call, an_event

SECRET = "whsec_c2l4dGVlbi1wbHVzLWVpZ2h0LWJ5dGVz"
ACCOUNTS = '[accounts.ferry]\nprovider = "ultravox"\napi_key = "k"\nwebhook_secrets = ["s"]\n'
RECORDER = '''
"""Writes down what is done to it."""
import asyncio
from typing import Annotated, Literal
from msgspec import Meta
from aftercall import Secret, Sink, SinkConfig, SinkError


class Recorder(Sink):
    """Keeps a diary.

    And more."""

    class Config(SinkConfig, frozen=True):
        diary: Annotated[str, Meta(description="the file")] = "diary.txt"
        token: Annotated[Secret | None, Meta(description="a token [red]or[/red] none")] = None
        fails: Literal["never", "open", "crash", "slowly", "close", "migrate"] = "never"
        gives: Annotated[Literal["text", "bytes", "json"], Meta(description="what `render` gives")] = "json"

    def note(self, what):
        with open(self.config.diary, "a") as diary:
            print(self.name, what, file=diary)

    async def open(self):
        self.note("open")
        if self.config.fails == "open":
            raise SinkError("cannot connect")

    async def close(self):
        self.note("close")
        if self.config.fails == "close":
            raise OSError("sesame-7291")

    async def deliver(self, delivery):
        self.note(f"deliver {delivery.event.type} {delivery.attempt}")
        if self.config.fails == "crash":
            raise ValueError("sesame-7291")
        if self.config.fails == "slowly":
            await asyncio.sleep(30)

    def render(self, delivery):
        call = delivery.event.data.call
        made = {"text": f"\\x1b[31mred {call.agent.name}", "bytes": b"\\xff\\xfe", "json": {"to": call.to, "raw": b"x"}}
        return made["text"].encode() if self.config.gives == "text" else made[self.config.gives]


class Erasing(Recorder):
    async def erase(self, call):
        self.note(f"erase {call.id}")


class Tables(Recorder):
    async def migrate(self):
        self.note("migrate")
        if self.config.fails == "migrate":
            raise ValueError("sesame-7291")
        return ["made the table calls", "made an index"]


class Ready(Recorder):
    async def migrate(self):
        return []
'''


class Told(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Told]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """`aftercall sinks …` with this table of sinks, in a directory of its own, where `recorder.py` lies too."""
    (tmp_path / "recorder.py").write_text(RECORDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)

    def in_there(table: str, *arguments: str, stdin: str | None = None) -> Told:
        (tmp_path / "aftercall.toml").write_text(ACCOUNTS + table)
        told = CliRunner().invoke(aftercall, ["sinks", *arguments], input=stdin, catch_exceptions=False)
        return Told(told.exit_code, told.stdout, told.stderr)

    yield in_there
    sys.modules.pop("recorder", None)


@pytest.fixture
def diary(tmp_path: Path) -> Callable[[], list[str]]:
    return lambda: (tmp_path / "diary.txt").read_text().splitlines()


@pytest.fixture
async def destination() -> AsyncIterator[Destination]:
    made = Destination()
    await made.start()
    yield made
    await made.stop()


def a_hook(url: str, more: str = "allow_private_network = true\n") -> str:
    return f'[sinks.hook]\ntype = "webhook"\nurl = "{url}"\nsecret = "{SECRET}"\n{more}'


def a_recorder(more: str = "", *, kind: str = "Recorder", name: str = "diary") -> str:
    return f'[sinks.{name}]\ntype = "recorder:{kind}"\n{more}\n'


# show


def show(*arguments: str) -> Result:
    return CliRunner().invoke(aftercall, ["sinks", "show", *arguments])


@pytest.mark.parametrize("name", SINKS)
def test_every_option_of_a_built_in_is_shown_with_the_common_ones(name: str) -> None:
    shown = show(name)
    assert shown.exit_code == 0
    found = json.loads(show(name, "--json").stdout)

    own = {option["name"]: option for option in found["options"]}
    assert set(own) == set(sink_class(name).Config.__struct_encode_fields__)
    common = {option["name"] for option in found["common"]}
    assert common | set(own) == {*CommonOptions.__struct_fields__, *own} - {"type"}
    for option in (*found["options"], *found["common"]):
        assert option["description"]
        assert f"  {option['name']} ({option['type']}" in shown.stdout
        assert option["description"] in shown.stdout
    assert [found["type"], found["from"], found["events"]] == [name, "aftercall", list(sink_class(name).events)]


def test_an_option_s_line_says_its_type_its_default_and_whether_it_is_a_secret_or_required() -> None:
    lines = show("webhook").stdout.splitlines()
    assert "  url (text; a secret; required): where events are posted, http:// or https://" in lines
    assert '  timeout (text; default "10s"): how long an attempt may take, at most 30s' in lines
    assert '  format (one of auto, json, text; default "auto"): ' in show("console").stdout


def test_without_a_type_all_are_shown_in_short() -> None:
    shown = show().stdout
    assert all(name in shown for name in SINKS)
    found = {one["type"]: one for one in map(json.loads, show("--json").stdout.splitlines())}
    assert set(found) >= set(SINKS)
    assert found["webhook"]["options"] == ["url", "secret", "headers", "template"]
    assert found["webhook"]["problem"] is None


def test_a_foreign_type_is_shown_by_module_and_class(run: Run) -> None:
    shown = run("", "show", "recorder:Recorder")
    assert shown.stdout.startswith("recorder:Recorder: Keeps a diary.\n")
    assert "token (text; a secret): a token [red]or[/red] none\n" in shown.stdout
    assert "the file" in shown.stdout


def test_an_installed_type_is_shown_by_its_name(run: Run, tmp_path: Path) -> None:
    installed = tmp_path / "recorder-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: recorder\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[aftercall.sinks]\ndiary = recorder:Recorder\n")
    assert run("", "show", "diary").stdout.startswith("diary: Keeps a diary.\n")
    listed = [json.loads(line) for line in run("", "show", "--json").stdout.splitlines()]
    assert [(one["type"], one["from"]) for one in listed][-1] == ("diary", "recorder:Recorder")


def test_a_type_that_is_not_there_is_refused_with_the_likely_one() -> None:
    refused = show("slak")
    assert refused.exit_code == 2
    assert 'did you mean "slack"?' in refused.output


def test_a_type_that_cannot_be_loaded_says_what_to_do_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SINKS, "slack", "not_installed_here:Slack")
    alone = show("slack")
    assert (alone.exit_code, alone.stdout) == (1, "")
    assert "pip install 'aftercall[slack]'" in alone.stderr
    assert "not available here" in show().stdout
    found = {one["type"]: one for one in map(json.loads, show("--json").stdout.splitlines())}
    assert "pip install 'aftercall[slack]'" in found["slack"]["problem"]
    assert found["webhook"]["problem"] is None


# test


async def test_the_test_event_arrives_as_a_worker_would_send_it(run: Run, destination: Destination) -> None:
    more = 'allow_private_network = true\naccounts = ["ferry"]\nevents = ["call.ended"]\nredact = ["transcript"]\n'
    told = await asyncio.to_thread(run, a_hook(destination.url, more), "test", "hook")

    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("hook (webhook) took the call.ended, in ")
    assert told.stdout.endswith(" s: HTTP 200\n")
    (sent,) = destination.sent
    event = StandardWebhook(SECRET).verify(sent.body, sent.headers)
    assert (event["source"], event["type"], event["data"]["tags"]) == (
        "/ultravox/ferry",
        "call.ended",
        {"test": "true"},
    )
    assert event["data"]["call"]["transcript"] is None
    assert event["data"]["call"]["analysis"]["summary"]


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (400, "permanent", "not try this event again"),
        (503, "passing", "try again, by the sink's `retry`; it asked for 7 s of patience"),
        (410, "gone", "disable the sink"),
    ],
)
async def test_a_refusal_is_told_with_what_a_worker_would_do(
    run: Run, destination: Destination, status: int, kind: str, words: str
) -> None:
    headers = {"retry-after": "7"} if status == 503 else {}
    async with destination.answering(status, b"the call of Ines Varga", headers):
        told = await asyncio.to_thread(run, a_hook(destination.url), "test", "hook")
        as_json = await asyncio.to_thread(
            run, a_hook(destination.url), "test", "hook", "--json", "--type", "call.ended"
        )

    assert (told.returncode, as_json.returncode) == (1, 1)
    assert f": HTTP {status}\n" in told.stdout
    assert words in told.stdout
    assert "Ines" not in told.stdout + told.stderr
    found = json.loads(as_json.stdout)
    assert found.pop("duration_ms") >= 0
    assert found.pop("event").startswith("evt_")
    assert found == {
        "sink": "hook",
        "type": "webhook",
        "event_type": "call.ended",
        "outcome": kind,
        "receipt": None,
        "error": f"HTTP {status}",
        "retry_after_s": 7.0 if status == 503 else None,
    }


async def test_a_private_address_is_reached_only_where_the_table_allows_it(run: Run, destination: Destination) -> None:
    told = await asyncio.to_thread(run, a_hook(destination.url, ""), "test", "hook")
    assert told.returncode == 1
    assert "set allow_private_network = true" in told.stdout
    assert destination.sent == destination.refused == []


async def test_a_destination_that_is_not_there_is_told(run: Run, destination: Destination) -> None:
    async with destination.down():
        told = await asyncio.to_thread(run, a_hook(destination.url), "test", "hook")
    assert told.returncode == 1
    assert "cannot connect\npassing" in told.stdout


def test_a_sink_is_opened_before_and_closed_after(run: Run, diary: Callable[[], list[str]]) -> None:
    told = run(a_recorder(), "test", "diary", "--json")
    assert (told.returncode, json.loads(told.stdout)["outcome"]) == (0, "delivered")
    assert diary() == ["diary open", "diary deliver call.settled 1", "diary close"]


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ("open", "cannot connect"),
        ("crash", "ValueError in recorder:Recorder at deliver:"),
        ("slowly", "no answer within 0.5 s"),
    ],
)
def test_a_failure_is_told_without_what_a_library_says(
    run: Run, diary: Callable[[], list[str]], fails: str, words: str
) -> None:
    told = run(a_recorder(f'fails = "{fails}"\ntimeout = "500ms"'), "test", "diary")
    assert told.returncode == 1
    took = re.search(r"in (\d+\.\d+) s: ", told.stdout)
    assert took is not None
    assert float(took[1]) < 2.5
    assert words in told.stdout
    assert "passing" in told.stdout
    assert "sesame" not in told.stdout + told.stderr
    assert ("diary close" in diary()) == (fails != "open"), "what was not opened is not closed"


def test_a_sink_that_cannot_be_closed_has_delivered_all_the_same(run: Run) -> None:
    told = run(a_recorder('fails = "close"'), "test", "diary")
    assert (told.returncode, told.stderr) == (0, "diary: closing it failed: OSError\n")


def test_an_erasure_goes_the_way_of_erasures(run: Run, diary: Callable[[], list[str]]) -> None:
    assert run(a_recorder(kind="Erasing"), "test", "diary", "--type", "call.erased").returncode == 0
    assert diary() == ["diary open", "diary erase test_call", "diary close"]


def test_an_event_that_the_sink_would_not_get_is_sent_and_that_is_said(run: Run) -> None:
    for table, why in (
        ('events = ["call.ended"]', "it asks for call.ended"),
        ('events = ["*"]\nagents = ["agent_other"]', "its table leaves it out"),
    ):
        told = run(a_recorder(table), "test", "diary", "--type", "call.started")
        assert told.returncode == 0
        assert told.stderr == f"a worker would not give this call.started to diary: {why}\n"


def test_a_sink_that_is_not_configured_is_refused_with_those_that_are(run: Run) -> None:
    for verb in ("test", "render", "migrate"):
        told = run(a_recorder(), verb, "dairy")
        assert (told.returncode, told.stdout) == (2, "")
        assert "no such sink: dairy; there are diary" in told.stderr


# --event


def given(what: str) -> str:
    event: Any = msgspec.to_builtins(an_event())
    shown = {"event": event, "deliveries": {}}
    call = msgspec.to_builtins(a_call())
    return json.dumps({"event": event, "events show": shown, "calls fetch": call}[what], indent=2)


@pytest.mark.parametrize("what", ["event", "events show", "calls fetch"])
async def test_what_other_commands_print_can_be_sent(
    run: Run, destination: Destination, tmp_path: Path, what: str
) -> None:
    (tmp_path / "given.json").write_text(given(what))
    told = await asyncio.to_thread(run, a_hook(destination.url), "test", "hook", "--event", "given.json")
    assert told.returncode == 0, told.stderr
    sent = destination.sent[0].json()
    assert sent["data"]["call"] == msgspec.to_builtins(a_call())
    assert (sent["subject"], sent["source"]) == ("call_7f3", "/retell/acme")
    assert (sent == msgspec.to_builtins(an_event())) == (what != "calls fetch")


async def test_what_is_rendered_is_what_is_sent(run: Run, destination: Destination) -> None:
    rendered = await asyncio.to_thread(
        run, a_hook(destination.url, 'redact = ["numbers"]\n'), "render", "hook", "--event", "-", stdin=given("event")
    )
    assert destination.sent == []
    assert rendered.stdout.startswith('{\n  "specversion": "1.0",\n')
    table = a_hook(destination.url, 'redact = ["numbers"]\nallow_private_network = true\n')
    await asyncio.to_thread(run, table, "test", "hook", "--event", "-", stdin=given("event"))
    assert json.loads(rendered.stdout) == destination.sent[0].json()
    assert "+1555" not in rendered.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not an event and not a call"),
        ('{"event": null, "deliveries": {}}', "no longer stored"),
        ('{"id": "x", "provider": "retell"}', "not an event and not a call"),
        ("[1]", "not an event and not a call"),
    ],
)
def test_a_file_that_is_neither_is_refused(run: Run, content: str, words: str) -> None:
    told = run(a_recorder(), "render", "diary", "--event", "-", stdin=content)
    assert (told.returncode, told.stdout) == (2, "")
    assert words in told.stderr


def test_an_event_in_a_file_has_its_type_and_a_call_may_be_given_one(run: Run) -> None:
    told = run(a_recorder(), "render", "diary", "--event", "-", "--type", "call.ended", stdin=given("event"))
    assert told.returncode == 2
    assert "has a type" in told.stderr
    as_ended = run(
        '[sinks.out]\ntype = "console"\n',
        *("test", "out", "--event", "-", "--type", "call.ended"),
        stdin=given("calls fetch"),
    )
    assert json.loads(as_ended.stdout.splitlines()[0])["type"] == "call.ended"


# render


def test_what_a_sink_renders_is_printed_for_people(run: Run, diary: Callable[[], list[str]]) -> None:
    structure = run(a_recorder('redact = ["numbers"]'), "render", "diary")
    assert structure.stdout == '{\n  "to": null,\n  "raw": "eA=="\n}\n'
    assert run(a_recorder('gives = "bytes"'), "render", "diary").stdout == "//4=\n"
    assert "red Test agent" in run(a_recorder('gives = "text"'), "render", "diary").stdout
    with pytest.raises(FileNotFoundError):
        diary()


# migrate


def test_each_sink_that_has_something_to_prepare_does_so(run: Run, diary: Callable[[], list[str]]) -> None:
    table = a_recorder(kind="Tables", name="one") + a_recorder(name="two") + a_recorder(kind="Ready", name="three")
    done = run(table, "migrate")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "one: made the table calls",
        "one: made an index",
        "three: nothing was to be done",
    ]
    assert diary()[:3] == ["one open", "one migrate", "one close"]
    assert "two open" not in diary()


def test_some_that_could_not_be_prepared_are_told(run: Run) -> None:
    failing = a_recorder('fails = "migrate"', kind="Tables", name="one")
    unreachable = a_recorder('fails = "open"', kind="Tables", name="two")
    done = run(failing + unreachable + a_recorder(kind="Tables", name="three"), "migrate", "--json")
    assert done.returncode == 4
    assert [
        (row["sink"], bool(row["done"]), bool(row["error"])) for row in map(json.loads, done.stdout.splitlines())
    ] == [
        ("one", False, True),
        ("two", False, True),
        ("three", True, False),
    ]
    assert "one: ValueError in recorder:Tables at migrate:" in done.stderr
    assert "two: cannot connect" in done.stderr
    assert "sesame" not in done.stdout + done.stderr
    assert run(failing, "migrate", "one").returncode == 1


def test_where_nothing_is_to_be_prepared_that_is_said(run: Run) -> None:
    none = run(a_recorder(), "migrate")
    assert (none.returncode, none.stderr) == (0, "no configured sink has anything to prepare\n")
    named = run(a_recorder(), "migrate", "diary")
    assert (named.returncode, named.stderr) == (0, "diary (recorder:Recorder) has nothing to prepare\n")


def test_brackets_in_what_is_listed_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"error": "HTTP 400: [bold]no[/bold] [/] [red]", "sink": "\x1b[31mops"}]
    output.show(rows, as_json=False, columns=("sink", "error"))
    printed = capsys.readouterr().out
    assert "HTTP 400: [bold]no[/bold] [/] [red]" in printed
    assert "\x1b[31m" not in printed


def test_a_patience_that_is_no_number_is_none() -> None:
    told = SinkError("HTTP 429", retry_after="7")  # type: ignore[arg-type]
    kept = sink_error(None, told)  # type: ignore[arg-type]
    assert (str(kept), kept.retry_after, kept.permanent) == ("HTTP 429", None, False)
    assert sink_error(None, SinkError("x", retry_after=7)).retry_after == 7  # type: ignore[arg-type]
