"""What aftercall/sinks/README.md says is so: its table is the code's, and its examples run as they stand."""

import re
import sqlite3
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiohttp import web
from msgspec import Meta

from aftercall.client import make_client
from aftercall.errors import ConfigurationError, SinkError
from aftercall.event import decode
from aftercall.plugins import SINKS, sink_class
from aftercall.settings import load
from aftercall.sink_settings import SinkSettings
from aftercall.sinks.base import Sink
from tests.samples import a_call, a_delivery, an_event

ROOT = Path(__file__).parents[2]
README = (ROOT / "aftercall" / "sinks" / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def module_name(source: str) -> str:
    return source.partition("\n")[0].removeprefix("# ").removesuffix(".py")


MODULES = {module_name(source): source for source in blocks("python")}
TABLE, PACKAGE = blocks("toml")
ACCOUNT = '[accounts.acme]\nprovider = "retell"\napi_key = "key_lantern"\n'
ENVIRON = {"REDIS_URL": "redis://localhost", "CRM_TOKEN": "sesame-7291"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a user laid the README's modules, and starts the processes."""
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with make_client(guarded=False) as client:
        yield client


def configured(folder: Path, table: str) -> SinkSettings:
    (folder / "aftercall.toml").write_text(ACCOUNT + table)
    [sink] = load(ENVIRON, folder).sinks.values()
    return sink


def options(sink: type[Sink]) -> list[tuple[str, str, str]]:
    """Each option's name, default and description, from the Config struct."""
    rows = []
    for field in msgspec.structs.fields(sink.Config):
        metas = [part for part in getattr(field.type, "__metadata__", ()) if isinstance(part, Meta)]
        [description] = [meta.description for meta in metas if meta.description]
        default = "required" if field.required else f"`{msgspec.json.encode(field.default).decode()}`"
        rows.append((f"`{field.encode_name}`", default, description))
    return rows


def test_the_table_has_every_option_of_every_built_in_sink() -> None:
    cells = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in README.splitlines()
        if line.startswith("|")
    ]

    assert cells[0] == ("sink", "option", "default", "what it is")
    assert cells[2:] == [(f"`{name}`", *row) for name in sorted(SINKS) for row in options(sink_class(name))]


def test_the_common_options_are_those_that_every_sink_takes(folder: Path) -> None:
    [line] = [line for line in README.splitlines() if line.startswith("Every sink also has")]
    values: dict[str, Any] = {"events": ["*"], "accounts": ["acme"], "redact": ["numbers"], "retry": ["5s"]}
    values |= {"timeout": "5s", "allow_private_network": True, "where": "tags.client == 'acme'", "rate": "10/s"}
    assert sorted(re.findall(r"`(\w+)`", line)) == sorted(values)

    table = "".join(f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in values.items())

    assert configured(folder, f'[sinks.out]\ntype = "console"\n{table}').timeout_s == 5
    with pytest.raises(ConfigurationError, match="unknown key"):
        configured(folder, '[sinks.out]\ntype = "console"\nchannel = "x"\n')


def test_the_example_is_configured_as_it_says(folder: Path) -> None:
    sink = configured(folder, TABLE)

    assert (sink.name, sink.sink.__name__, sink.timeout_s) == ("crm", "CrmNotes", 5.0)
    assert sink.events == ("call.analyzed",)
    assert sink.config.token == ENVIRON["CRM_TOKEN"]  # type: ignore[attr-defined]
    assert "token=***" in repr(sink.config)


def test_a_misspelt_or_missing_option_of_the_example_is_told_by_its_path(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r'sinks\.crm\.tokn: unknown key; did you mean "token"') as caught:
        configured(folder, TABLE.replace("token =", "tokn ="))

    assert "sinks.crm.token: missing" in caught.value.problems


async def test_the_example_brings_its_note_and_tells_a_refusal(folder: Path, http: httpx.AsyncClient) -> None:
    taken: list[tuple[str | None, Any]] = []
    status = 200

    async def take(request: web.Request) -> web.Response:
        taken.append((request.headers.get("authorization"), await request.json()))
        return web.Response(status=status)

    app = web.Application()
    app.router.add_post("/notes", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/notes"
    try:
        settings = configured(folder, TABLE.replace("https://crm.example.com/notes", url))
        sink = settings.sink(settings.name, settings.config, http)

        await sink.deliver(a_delivery())
        await sink.deliver(a_delivery(an_event(call=a_call(direction="outbound", analysis=None))))

        summary = "Mirela Okafor moved her fitting to Tuesday."
        assert taken == [
            ("Bearer sesame-7291", {"key": "evt_lantern", "phone": "+15550100123", "text": summary}),
            ("Bearer sesame-7291", {"key": "evt_lantern", "phone": "+15550100177", "text": None}),
        ]
        for status, permanent in ((403, True), (503, False)):  # noqa: B007 - `take` reads it
            with pytest.raises(SinkError) as caught:
                await sink.deliver(a_delivery())
            assert caught.value.permanent is permanent
    finally:
        await runner.cleanup()


async def test_the_example_with_a_connection_keeps_an_event_once(folder: Path, http: httpx.AsyncClient) -> None:
    settings = configured(folder, '[sinks.table]\ntype = "call_table:CallTable"\n')
    sink = settings.sink(settings.name, settings.config, http)
    await sink.open()
    await sink.deliver(a_delivery())
    await sink.deliver(a_delivery(attempt=2))
    await sink.deliver(a_delivery(an_event(id="evt_quartz")))

    rows = sqlite3.connect(folder / "calls.db")
    kept = dict(rows.execute("select id, event from events"))
    assert {name: decode(event).id for name, event in kept.items()} == {name: name for name in kept}
    assert sorted(kept) == ["evt_lantern", "evt_quartz"]

    rows.execute("begin exclusive")
    with pytest.raises(SinkError, match="OperationalError") as caught:
        await sink.deliver(a_delivery(an_event(id="evt_heron")))
    assert not caught.value.permanent
    rows.close()
    await sink.deliver(a_delivery(an_event(id="evt_heron")))
    await sink.close()


async def test_the_example_that_forgets_deletes_what_it_has_of_one_call(folder: Path, http: httpx.AsyncClient) -> None:
    settings = configured(folder, '[sinks.table]\ntype = "forgetful_table:ForgetfulTable"\n')
    assert settings.erases
    sink = settings.sink(settings.name, settings.config, http)
    await sink.open()
    for name, call in {
        "evt_a": a_call(),
        "evt_b": a_call(),
        "evt_theirs": a_call(account="quay"),
        "evt_other": a_call(id="x"),
    }.items():
        await sink.deliver(a_delivery(an_event(id=name, call=call)))

    await sink.erase(a_call())
    await sink.erase(a_call())

    rows = sqlite3.connect(folder / "calls.db")
    assert sorted(name for (name,) in rows.execute("select id from events")) == ["evt_other", "evt_theirs"]
    rows.execute("begin exclusive")
    with pytest.raises(SinkError, match="OperationalError") as caught:
        await sink.erase(a_call())
    assert not caught.value.permanent
    rows.close()
    await sink.close()


def test_which_events_a_sink_gets_by_default_is_as_it_says() -> None:
    assert "Without `events` a sink gets all of them, and `slack` gets `call.settled` alone" in README
    defaults = {name: sink_class(name).events for name in SINKS}
    assert defaults == dict.fromkeys(SINKS, ("*",)) | {"slack": ("call.settled",)}


def test_the_example_is_found_by_its_name_once_it_is_installed(folder: Path) -> None:
    [entry_points] = tomllib.loads(PACKAGE)["project"]["entry-points"].items()
    group, entries = entry_points
    installed = folder / "crm_notes-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: crm-notes\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in entries.items()]
    (installed / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))

    sink = configured(folder, TABLE.replace("crm_notes:CrmNotes", "crm_notes"))

    assert sink.sink.__name__ == "CrmNotes"
    assert issubclass(sink.sink, Sink)
