"""The schema of aftercall.toml: it takes what the settings take, and refuses what an editor can see to be wrong."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner
from msgspec import Meta

from aftercall.cli import aftercall
from aftercall.config_schema import config_schema
from aftercall.options import parse_duration, parse_rate
from aftercall.plugins import PROVIDERS, SINKS
from aftercall.sink_settings import CommonOptions
from aftercall.sinks.base import SinkConfig

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "deploy" / "aftercall.schema.json"
ACCOUNT = '[accounts.harbour]\nprovider = "retell"\napi_key = "key_harbour"\n'
HOOK = '[sinks.ops]\ntype = "webhook"\nurl = "https://example.com"\nsecret = "${OPS_SECRET}"\n'

Validator = Any


@pytest.fixture(
    scope="module", params=[jsonschema.Draft202012Validator, jsonschema.Draft7Validator], ids=["2020-12", "draft 7"]
)
def validator(request: pytest.FixtureRequest) -> Validator:
    """Each dialect: editors with taplo read the schema as draft 7."""
    return request.param(config_schema(installed=False))


def examples() -> dict[str, str]:
    """Every piece of configuration in the documentation and under deploy/."""
    found = {path.name: path.read_text() for path in (ROOT / "deploy").rglob("*.toml")}
    for path in [*ROOT.glob("*.md"), *ROOT.glob("aftercall/**/*.md"), *ROOT.glob("deploy/**/*.md")]:
        for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)):
            block = block.replace('"lantern"', '"lantern:Lantern"')  # the example of a plug-in, not installed here
            if not {"project", "build-system"} & set(tomllib.loads(block)):
                found[f"{path.relative_to(ROOT)} {number}"] = block if "[accounts." in block else ACCOUNT + block
    return found


def test_it_is_a_schema_in_both_dialects() -> None:
    schema = config_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft7Validator.check_schema(schema)


def test_every_reference_in_it_leads_somewhere_and_has_nothing_beside_it() -> None:
    schema = config_schema()
    found = []

    def walk(part: Any) -> None:
        if isinstance(part, dict) and isinstance(part.get("$ref"), str):
            assert list(part) == ["$ref"], "draft 7 does not read what stands beside a $ref"
            found.append(part["$ref"].removeprefix("#/$defs/"))
        for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            walk(one)

    walk(schema)
    assert set(found) <= set(schema["$defs"])
    assert {f"sink.{name}" for name in SINKS} <= set(found)


def test_the_shipped_copy_is_the_code_s() -> None:
    made = msgspec.json.format(msgspec.json.encode(config_schema(installed=False)), indent=2).decode() + "\n"
    assert SHIPPED.read_text("utf-8") == made, (
        "write it anew, where no plug-in is installed: aftercall check --schema > deploy/aftercall.schema.json"
    )


def test_the_command_prints_it_without_any_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    printed = CliRunner().invoke(aftercall, ["check", "--schema"], catch_exceptions=False)
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == json.loads(json.dumps(config_schema()))


@pytest.mark.parametrize("name", examples())
def test_every_example_fits(validator: Validator, name: str) -> None:
    validator.validate(tomllib.loads(examples()[name]))


def test_there_are_examples() -> None:
    assert {name.partition(" ")[0] for name in examples()} >= {"README.md", "aftercall/sinks/README.md"}


@pytest.mark.long
def test_whatever_the_settings_accept_in_their_tests_fits(tmp_path: Path) -> None:
    count = tmp_path / "accepted"
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "tests.accepted",
            "-p",
            "no:cacheprovider",
            "tests/test_settings.py",
        ],
        env={**os.environ, "AFTERCALL_ACCEPTED": str(count), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert len(count.read_text().splitlines()) > 30


RIGHT = [
    HOOK + 'timeout = "${TIMEOUT}"\nrate = "${RATE}/s"\nretry = ["${FIRST}", "5s"]\nevents = ["${EVENT}"]\n',
    HOOK + 'redact = ["transcript", "call.analysis.custom.iban", "${WORD}"]\n',
    '[sinks.x]\ntype = "${TYPE}"\nanything = 1\n',
    '[sinks.x]\ntype = "pager:Pager"\ntoken = { a = [1] }\n',
    '[accounts.b]\nprovider = "my.module:Provider"\n',
    '[accounts.b]\nprovider = "${PROVIDER}"\nbase_url = "${URL}"\n',
    '[sinks.out]\ntype = "console"\nformat = "${FORMAT}"\n',
    '[sinks.s]\ntype = "redis_stream"\nurl = "redis://h"\nmax_length = 5\n',
]
WRONG = [
    ("[sink.ops]\n", "sink"),
    (HOOK + 'retyr = ["5s"]\n', "sinks.ops"),
    (HOOK + "timeout = 5\n", "sinks.ops.timeout"),
    (HOOK + 'timeout = "5"\n', "sinks.ops.timeout"),
    (HOOK + 'timeout = "${}"\n', "sinks.ops.timeout"),
    (HOOK + 'rate = "10/d"\n', "sinks.ops.rate"),
    (HOOK + 'events = ["call.setled"]\n', "sinks.ops.events[0]"),
    (HOOK + 'events = ["call.unknown"]\n', "sinks.ops.events[0]"),
    (HOOK + 'events = "call.settled"\n', "sinks.ops.events"),
    (HOOK + 'redact = ["transcripts"]\n', "sinks.ops.redact[0]"),
    (HOOK + 'allow_private_network = "yes"\n', "sinks.ops.allow_private_network"),
    (HOOK + 'channel = "#calls"\n', "sinks.ops"),
    ('[sinks.ops]\ntype = "webhook"\nurl = "https://example.com"\n', "sinks.ops"),
    ('[sinks.ops]\nurl = "https://example.com"\n', "sinks.ops"),
    ('[sinks.ops]\ntype = "wehbook"\n', "sinks.ops.type"),
    ('[sinks."a b"]\ntype = "console"\n', "sinks"),
    ('[sinks.out]\ntype = "console"\nformat = "xml"\n', "sinks.out.format"),
    ('[sinks.s]\ntype = "redis_stream"\nurl = "redis://h"\nmax_length = "${MANY}"\n', "sinks.s.max_length"),
    ('[sinks.s]\ntype = "redis_stream"\nurl = "redis://h"\nmax_length = 0\n', "sinks.s.max_length"),
    ('[sinks.s]\ntype = "redis_stream"\nurl = ""\n', "sinks.s.url"),
    ('[accounts.a]\nprovider = "retel"\napi_key = "k"\n', "accounts.a.provider"),
    ('[accounts.a]\nprovider = "retell"\n', "accounts.a"),
    ('[accounts.a]\nprovider = "cartesia"\napi_key = "k"\n', "accounts.a"),
    ('[accounts.a]\nprovider = "retell"\napi_key = ""\n', "accounts.a.api_key"),
    ('[accounts.a]\nprovider = "retell"\napi_kee = "k"\napi_key = "k"\n', "accounts.a"),
    ('[accounts.a]\nprovider = "retell"\napi_key = "k"\nwebhook_secrets = "s"\n', "accounts.a.webhook_secrets"),
    ('[accounts.a]\nprovider = "retell"\napi_key = "k"\nbase_url = "ftp://x"\n', "accounts.a.base_url"),
    ('[accounts.a]\nprovider = "retell"\napi_key = "k"\ntags = { tier = 1 }\n', "accounts.a.tags.tier"),
    ('[retention]\nevents = "a week"\n', "retention.events"),
    ('[retention]\nevent = "7d"\n', "retention"),
]


@pytest.mark.parametrize("toml", RIGHT)
def test_what_is_right_fits(validator: Validator, toml: str) -> None:
    validator.validate(tomllib.loads(ACCOUNT + toml))


@pytest.mark.parametrize(("toml", "path"), WRONG)
def test_a_typical_mistake_is_seen_where_it_stands(validator: Validator, toml: str, path: str) -> None:
    errors = list(validator.iter_errors(tomllib.loads(ACCOUNT + toml)))
    assert path in {error.json_path.removeprefix("$.") for error in errors} | {
        word
        for error in errors
        if error.validator == "additionalProperties"
        for word in re.findall(r"'(\w+)'", error.message)
    }


def test_a_file_without_an_account_is_seen(validator: Validator) -> None:
    assert not validator.is_valid({"sinks": {}})
    assert not validator.is_valid({"accounts": {}})


def test_every_option_is_described_where_an_editor_looks() -> None:
    definitions = config_schema(installed=False)["$defs"]
    branches = [part["$ref"] for part in definitions["sink"]["anyOf"] if part]
    assert branches == [f"#/$defs/sink.{name}" for name in sorted(SINKS)]
    for name in SINKS:
        properties = definitions[f"sink.{name}"]["properties"]
        assert set(properties) >= set(CommonOptions.__struct_fields__)
        for key, schema in properties.items():
            schema = definitions[schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else schema
            assert schema["description"], f"{name}.{key}"
    providers = definitions["account"]["properties"]["provider"]["anyOf"][0]["enum"]
    assert providers == sorted(PROVIDERS)


@pytest.mark.parametrize("text", ["500ms", "5s", "1.5m", "7d", "soon", "5", "5 s", "-5s", "", "1e3s"])
def test_a_duration_is_what_the_settings_take_for_one(validator: Validator, text: str) -> None:
    try:
        parse_duration(text)
    except ValueError:
        right = False
    else:
        right = True
    assert validator.is_valid(tomllib.loads(f'{ACCOUNT}[retention]\nevents = "{text}"\n')) is right


@pytest.mark.parametrize("text", ["10/s", "0.5/m", "36/h", "10", "10/d", "fast", "-1/s"])
def test_a_rate_is_what_the_settings_take_for_one(validator: Validator, text: str) -> None:
    try:
        parse_rate(text)
    except ValueError:
        right = False
    else:
        right = True
    assert validator.is_valid(tomllib.loads(f'{ACCOUNT}{HOOK}rate = "{text}"\n')) is right


class Header(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern="^X-")]
    value: str | None = None


class Odd(SinkConfig, frozen=True):
    headers: Annotated[list[Header], Meta(description="sent along")] = []
    limits: dict[str, Annotated[int, Meta(ge=1)]] = {}
    mode: Annotated[str | None, Meta(description="how")] = None
    pair: tuple[str, int] | None = None


ODD = "import tests.test_config_schema as here\nfrom aftercall import Sink\nclass Odd(Sink):\n    Config = here.Odd\n    async def deliver(self, delivery): ...\n"  # noqa: E501


def test_options_of_any_shape_have_a_schema(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "odd_sink.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(SINKS, "odd/one", "odd_sink:Odd")
    schema = config_schema(installed=False)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)

    def fits(options: str) -> bool:
        return bool(validator.is_valid(tomllib.loads(f'{ACCOUNT}[sinks.o]\ntype = "odd/one"\n{options}\n')))

    assert fits('headers = [{ name = "X-A" }, { name = "${NAME}", value = "b" }]\nlimits = { a = 1 }\nmode = "x"')
    assert not fits('headers = [{ name = "A" }]')
    assert not fits('headers = [{ name = "X-A", vale = "b" }]')
    assert not fits("limits = { a = 0 }")
    assert not fits("mode = 1")


def test_a_type_that_cannot_be_loaded_may_have_any_option_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SINKS, "slack", "not_installed_here:Slack")
    schema = config_schema(installed=False)
    assert "pip install 'aftercall[slack]'" in schema["$defs"]["sink.slack"]["description"]
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(tomllib.loads(f'{ACCOUNT}[sinks.s]\ntype = "slack"\nurl = "x"\nnew = 1\n'))
    assert not validator.is_valid(tomllib.loads(f"{ACCOUNT}{HOOK}new = 1\n"))
