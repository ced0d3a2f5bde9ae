"""The README says what is so: its code runs, its configuration loads, its tables are the code's own."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from aftercall import Delivery, Sink, SinkError
from aftercall.call import Analysis
from aftercall.client import make_client
from aftercall.event import encode
from aftercall.plugins import SINKS
from aftercall.settings import ENVIRONMENT, load
from tests.samples import a_call, an_event
from tests.servers import free_port

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_its_first_two_commands_are_the_demo_and_the_tests() -> None:
    assert blocks("sh")[0].split("\n")[:2] == ["make demo", "make test"]
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "bench", "check"} <= set(targets)


def test_its_configuration_loads(tmp_path: Path) -> None:
    toml, _ = blocks("toml")
    (tmp_path / "aftercall.toml").write_text(toml)
    environ = {"REDIS_URL": "redis://localhost", "ACME_RETELL_KEY": "key_1", "OPS_SECRET": "whsec_c2l4dGVlbg=="}

    settings = load(environ, tmp_path)
    assert list(settings.accounts) == ["acme"]
    assert settings.sinks["ops"].redact == ("transcript", "numbers", "call.metadata.card")


def test_its_configuration_for_many_clients_loads(tmp_path: Path) -> None:
    _, toml = blocks("toml")
    (tmp_path / "aftercall.toml").write_text(toml)
    environ = {"REDIS_URL": "redis://localhost", "ACME_RETELL_KEY": "key_1", "ROARK_KEY": "key_2"}

    settings = load({**environ, "MILL_SLACK_URL": "https://hooks.slack.example/mill"}, tmp_path)
    assert list(settings.clients) == ["mill", "quay"]
    assert settings.sinks["mill_chat"].recording_from == "archive"
    assert settings.sinks["quay_scores"].clients == (settings.clients["quay"],)


def test_its_table_of_variables_is_the_code_s() -> None:
    table = re.search(r"<!-- environment -->\n(.*?)<!-- /environment -->", README, re.DOTALL)
    assert table is not None
    rows = "".join(f"| `{name}` | {text} |\n" for name, text in ENVIRONMENT.items())
    assert table[1] == f"| variable | what it is |\n|---|---|\n{rows}"


def test_its_table_of_sinks_names_every_built_in() -> None:
    table = README[README.index("### Sinks") : README.index("#### Many clients")]
    assert {
        name for row in re.findall(r"^\| (`.*?`) \| ", table, re.MULTILINE) for name in row.strip("`").split("` · `")
    } == set(SINKS)


def test_every_file_it_names_is_there() -> None:
    named = {
        path for path in re.findall(r"[`(]([\w./]+/[\w./<>]*)[`)]", README) if "<" not in path and "//" not in path
    }
    assert {path for path in named if not (ROOT / path).exists()} == set()
    for pattern in ("aftercall/providers/<name>.py", "aftercall/sinks/<name>.py"):
        assert pattern in README
        assert len(list(ROOT.glob(pattern.replace("<name>", "*")))) >= 4


async def test_its_sink_delivers() -> None:
    namespace: dict[str, Any] = {"__name__": "pager"}
    exec(blocks("python")[0], namespace)  # noqa: S102 - the README's own code
    pages: list[Any] = []
    statuses = [200, 410]

    async def take(request: web.Request) -> web.Response:
        pages.append(json.loads(await request.read()))
        return web.Response(status=statuses.pop(0))

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    http = make_client(guarded=False)
    sink: Sink = namespace["Pager"]("pager", namespace["Pager"].Config(url=f"http://127.0.0.1:{port}/"), http)

    event = an_event(
        type="call.analyzed", call=a_call(analysis=Analysis(summary="It went badly.", sentiment="negative"))
    )
    calm = an_event(type="call.analyzed", call=a_call(analysis=Analysis(sentiment="positive")))
    await sink.deliver(Delivery(event=calm, body=encode(calm)))
    await sink.deliver(Delivery(event=event, body=encode(event)))
    assert pages == [{"page": "It went badly.", "key": event.id}]
    with pytest.raises(SinkError) as refused:
        await sink.deliver(Delivery(event=event, body=encode(event)))
    assert refused.value.permanent
    await http.aclose()
    await runner.cleanup()
