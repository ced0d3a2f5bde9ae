"""What aftercall/sinks/README.md says is so: a sink is grown from it as a reader would, with the commands it names."""

import asyncio
import contextlib
import inspect
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from aftercall.errors import ConfigurationError, SinkError
from aftercall.event import EventType, decode
from aftercall.settings import load
from aftercall.sink_settings import SinkSettings
from aftercall.sinks.base import Sink
from aftercall.testing import Answer, Destination, HttpSinkContract
from aftercall.testing.sink_given import SinkGiven
from tests.samples import a_call, a_delivery, an_event
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "aftercall" / "sinks" / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


# Name and content of each file that the README shows.
FILES = {source.partition("\n")[0].removeprefix("# "): source for one in ("python", "toml") for source in blocks(one)}
COMMANDS = [line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
ACCOUNT = '[accounts.acme]\nprovider = "retell"\napi_key = "key_lantern"\n'
ENVIRON = {"REDIS_URL": "redis://localhost", "CRM_TOKEN": "sesame-7291"}
TABLE = FILES["aftercall.toml"]
URL = "http://127.0.0.1:9000/notes"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a reader laid the README's files, and starts the commands."""
    for name, source in FILES.items():
        (tmp_path / name).write_text(source, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def configured(folder: Path, table: str) -> SinkSettings:
    (folder / "aftercall.toml").write_text(ACCOUNT + table)
    [sink] = load(ENVIRON, folder).sinks.values()
    return sink


def made(folder: Path, table: str, http: httpx.AsyncClient) -> Any:
    settings = configured(folder, table)
    return settings.sink(settings.name, settings.config, http)


def environ(*path: Path) -> dict[str, str]:
    """Of a reader's shell, in which `CRM_TOKEN` is not set yet."""
    known = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "NO_COLOR": "1"}
    return known | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, *path)))}


def aftercall(*arguments: str) -> list[str]:
    """The installed command, which unlike `python -m` has not the working folder on its path."""
    return [sys.executable, "-P", "-c", "from aftercall.cli import main; main()", *arguments]


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environ() | variables, capture_output=True, text=True, timeout=120, check=False
    )


def rows(heading: str) -> list[list[str]]:
    """The cells of the table with this heading."""
    [table] = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


def code(cells: list[str]) -> set[str]:
    """The names in backticks, without what stands behind them."""
    return {name for cell in cells for name in re.findall(r"`(?:self\.)?(\w+(?:\.\w+)?)", cell)}


# Growing one


def test_the_example_is_configured_as_it_says(folder: Path) -> None:
    sink = configured(folder, TABLE)

    assert (sink.name, sink.sink.__name__, sink.timeout_s) == ("crm", "CrmNotes", 5.0)
    assert sink.events == ("call.settled",)
    assert sink.allow_private_network
    assert sink.config.token == ENVIRON["CRM_TOKEN"]  # type: ignore[attr-defined]
    assert "token=***" in repr(sink.config)


def test_a_misspelt_or_missing_option_of_the_example_is_told_by_its_path(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r'sinks\.crm\.tokn: unknown key; did you mean "token"') as caught:
        configured(folder, TABLE.replace("token =", "tokn ="))

    assert "sinks.crm.token: missing" in caught.value.problems


def test_the_commands_do_what_is_said_of_them(folder: Path) -> None:
    port = free_port()
    (folder / "aftercall.toml").write_text(TABLE.replace(":9000/", f":{port}/"))
    command = re.search(r"`python (-m aftercall.testing) 9000`", README)
    assert command is not None
    second_shell = subprocess.Popen(
        [sys.executable, *command[1].split(), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=folder, env=environ(),
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),  # as a shell starts what it puts aside
    )  # fmt: skip
    assert second_shell.stderr is not None
    try:
        assert f"http://127.0.0.1:{port} takes whatever" in second_shell.stderr.readline()
        exported = dict(line.removeprefix("export ").split("=") for line in COMMANDS if line.startswith("export"))
        tried = [line.split()[1:] for line in COMMANDS if line.startswith("aftercall sinks")]
        shown, rendered, tested = (run(folder, *aftercall(*command), **exported) for command in tried)
    finally:
        second_shell.send_signal(signal.SIGINT)
        printed, _ = second_shell.communicate(timeout=10)

    assert [command[1] for command in tried] == ["show", "render", "test"]
    for ran in (shown, rendered, tested):
        assert (ran.returncode, ran.stderr) == (0, "")
    assert "token (text; a secret; required): the API token" in shown.stdout
    assert json.loads(rendered.stdout)["title"] == "A call"
    assert "crm (crm_notes:CrmNotes) took the call.settled" in tested.stdout
    first, note = printed.splitlines()[:2]
    assert first == "POST /notes"
    assert json.loads(note).keys() == json.loads(rendered.stdout).keys() == {"key", "title", "phone", "text"}
    assert printed.count("POST") == 1
    assert second_shell.returncode == 0


async def test_events_arrive_in_the_sink_without_a_provider_or_a_redis(folder: Path, destination: Destination) -> None:
    assert "aftercall dev" in COMMANDS
    (folder / "aftercall.toml").write_text(TABLE.replace(URL, f"{destination.url}/notes"))
    with (folder / "dev.log").open("wb") as log:
        dev = await asyncio.create_subprocess_exec(
            *aftercall("dev", "--port", str(free_port())), cwd=folder, stdout=log, stderr=log,
            env=environ() | {"CRM_TOKEN": "sesame-7291"},
        )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            while len(destination.sent) < 3:
                assert dev.returncode is None, (folder / "dev.log").read_text()
                await asyncio.sleep(0.05)
        source = re.search(r"`(source \S+)` lets `aftercall (sinks list)`", README)
        assert source is not None
        third_shell = ["bash", "-c", f'{source[1]}; exec "$0" "$@"', *aftercall(*source[2].split(), "--json")]
        listed = await asyncio.to_thread(run, folder, *third_shell, CRM_TOKEN="sesame-7291")
        assert listed.returncode == 0, listed.stderr
        assert {json.loads(line)["name"] for line in listed.stdout.splitlines()} == {"crm", "dev_console"}
    finally:
        dev.send_signal(signal.SIGINT)
        await asyncio.wait_for(dev.wait(), 40)

    notes = [sent.json() for sent in destination.sent]
    assert len({note["key"] for note in notes}) == len(notes)
    assert {sent.headers["authorization"] for sent in destination.sent} == {"Bearer sesame-7291"}


def test_its_tests_pass_in_an_empty_folder(folder: Path) -> None:
    assert "python -m pytest" in COMMANDS
    settings = {"PYTEST_ADDOPTS": "-q -p no:cacheprovider", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # pytest and no more

    ran = run(folder, sys.executable, "-W", "error", "-m", "pytest", **settings)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(re.findall(r"(\d+) passed", ran.stdout)[0]) >= 45
    assert "skipped" not in ran.stdout


def test_its_tests_are_red_where_the_example_is_spoilt(folder: Path) -> None:
    source = FILES["crm_notes.py"]
    spoilt = source.replace('"key": delivery.event.id', '"key": str(id(delivery))')
    assert spoilt != source
    (folder / "crm_notes.py").write_text(spoilt)

    ran = run(folder, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_crm_notes.py")

    assert ran.returncode == 1
    assert "test_an_event_that_comes_again_is_there_once" in ran.stdout


async def test_the_example_that_rewrites_its_note_does_so(
    folder: Path, destination: Destination, http: httpx.AsyncClient
) -> None:
    table = TABLE.replace(URL, f"{destination.url}/notes").replace("crm_notes:CrmNotes", "crm_threads:CrmThreads")
    sink = made(folder, table, http)
    destination.answers = lambda _: Answer(201, {"id": "7"})

    assert await sink.deliver(a_delivery()) == "7"
    assert await sink.deliver(a_delivery(an_event(id="evt_quartz", type="call.analyzed"))) == "7"
    await sink.deliver(a_delivery(an_event(id="evt_other", call=a_call(id="call_8"))))

    asked = [f"{sent.method} {sent.path}" for sent in destination.sent]
    assert asked == ["POST /notes", "PATCH /notes/7", "POST /notes"]


async def test_the_example_with_a_connection_forgets_one_call_alone(folder: Path, http: httpx.AsyncClient) -> None:
    sink = made(folder, '[sinks.table]\ntype = "call_table:CallTable"\n', http)
    await sink.open()
    for name, call in {
        "evt_a": a_call(), "evt_b": a_call(), "evt_theirs": a_call(account="quay"), "evt_other": a_call(id="x"),
    }.items():  # fmt: skip
        await sink.deliver(a_delivery(an_event(id=name, call=call)))

    await sink.erase(a_call())
    await sink.erase(a_call())

    with contextlib.closing(sqlite3.connect(folder / "calls.db")) as rows:
        kept = dict(rows.execute("select id, body from events"))
        assert sorted(kept) == ["evt_other", "evt_theirs"]
        assert [decode(body.encode()).id for body in kept.values()] == list(kept)
        rows.execute("begin exclusive")
        with pytest.raises(SinkError, match="OperationalError") as caught:
            await sink.erase(a_call())
    assert not caught.value.permanent
    await sink.close()


def test_the_package_is_installed_and_found_by_its_name(folder: Path) -> None:
    [layout] = re.findall(r"^```\n(aftercall-crm-notes/\n.*?)^```$", README, re.MULTILINE | re.DOTALL)
    source, site = folder / "aftercall-crm-notes", folder / "site"
    source.mkdir()
    for name in re.findall(r"── (\S+)", layout):
        (source / name).write_text(FILES.get(name, "# Notes\n"), "utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(site), str(source)], check=True)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "aftercall.toml").write_text(TABLE.replace("crm_notes:CrmNotes", "crm_notes"))
    found = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(site)))}

    listed = run(elsewhere, *aftercall("sinks", "show"), **found)
    rendered = run(elsewhere, *aftercall("sinks", "render", "crm"), **found, CRM_TOKEN="sesame-7291")

    assert re.search(r"^crm_notes +CRM notes: a note on the caller's card", listed.stdout, re.MULTILINE)
    assert json.loads(rendered.stdout)["title"] == "A call"


# The tables


def test_every_event_type_is_in_its_table() -> None:
    assert set().union(*(code(row[:1]) for row in rows("`event.type`"))) == set(get_args(EventType))


def test_every_attribute_of_the_suites_is_in_their_table() -> None:
    named = set().union(*(code(row[:1]) for row in rows("attribute or method")))
    of_all = {name for name in vars(SinkGiven) if not name.startswith("_")} | set(SinkGiven.__annotations__)
    assert named == of_all | set(HttpSinkContract.__annotations__)
    for name, default in (("patience_s", 10.0), ("idempotent", True), ("gone_is_disabled", True)):
        assert getattr(HttpSinkContract, name) == default
        assert f"| `{name}` | `{default}` |" in README


def test_every_part_of_a_sink_is_in_its_table() -> None:
    named = set().union(*(code(row[:1]) for row in rows("part of a sink")))
    verbs = {name for name, _ in inspect.getmembers(Sink, inspect.isfunction) if not name.startswith("_")}
    assert named == (verbs - {"deliver"}) | {"raw", "events", "memory", "config", "name"}


def test_every_way_to_fail_is_in_its_table() -> None:
    told = " ".join(row[0] for row in rows("raise"))
    ways = set(inspect.signature(SinkError).parameters) - {"message"}
    assert set(re.findall(r"(\w+)=", told)) == ways


def test_the_event_shown_is_one() -> None:
    [shown] = blocks("json")
    event = decode(shown.encode())
    assert event.data.call.agent.name == "Front desk"
    assert (event.subject, event.source) == (event.data.call.id, "/retell/acme")
