"""Configuration: what it makes, and that every problem is named at once, by the path of its key, without a secret."""

import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta

from aftercall.call import Agent, Call, Recording
from aftercall.errors import ConfigurationError
from aftercall.options import parse_duration
from aftercall.settings import ENVIRONMENT, Settings, load
from aftercall.sinks.base import Delivery, Secret, Sink, SinkConfig
from aftercall.sinks.console import Console
from aftercall.sinks.slack import Slack
from aftercall.sinks.webhook import Webhook
from tests.samples import a_call, an_event

WHSEC = "whsec_bm90LWEtcmVhbC1zZWNyZXQtYnV0LWxvbmctZW5vdWdo"
REDIS = {"REDIS_URL": "redis://localhost:6379/0"}
ACCOUNT = '[accounts.harbour]\nprovider = "retell"\napi_key = "key_harbour"\n'
SINK = f'[sinks.ops]\ntype = "webhook"\nurl = "https://example.com/hook"\nsecret = "{WHSEC}"\n'

Load = Callable[..., Settings]


@pytest.fixture
def configured(tmp_path: Path) -> Load:
    """Settings from this TOML (None: no file) and these variables, with a Redis unless told otherwise."""

    def from_file(toml: str | None = None, **environ: str) -> Settings:
        if toml is not None:
            (tmp_path / "aftercall.toml").write_text(toml, "utf-8")
        return load({**REDIS, **environ}, tmp_path)

    return from_file


@pytest.fixture
def problems(configured: Load) -> Callable[..., tuple[str, ...]]:
    """The problems of a configuration that is wrong."""

    def of(toml: str | None = None, **environ: str) -> tuple[str, ...]:
        with pytest.raises(ConfigurationError) as caught:
            configured(toml, **environ)
        return caught.value.problems

    return of


Problems = Callable[..., tuple[str, ...]]


# The environment alone


def test_a_retell_key_alone_makes_an_account_that_also_verifies_with_it(configured: Load) -> None:
    settings = configured(RETELL_API_KEY="key_7")
    assert list(settings.accounts) == ["retell"]
    account = settings.accounts["retell"]
    assert (account.name, account.provider, account.api_key, account.webhook_secrets) == (
        "retell",
        "retell",
        "key_7",
        ("key_7",),
    )


def test_every_pair_of_variables_makes_its_account_or_sink(configured: Load) -> None:
    settings = configured(
        RETELL_API_KEY="r",
        CARTESIA_API_KEY="c",
        CARTESIA_WEBHOOK_SECRET="cs",
        ULTRAVOX_API_KEY="u",
        ULTRAVOX_WEBHOOK_SECRET="us",
        SLACK_WEBHOOK_URL="https://hooks.slack.com/services/T0/B0/x",
        SINK_WEBHOOK_URL="https://example.com/hook",
        SINK_WEBHOOK_SECRET=WHSEC,
    )
    assert {name: (account.api_key, account.webhook_secrets) for name, account in settings.accounts.items()} == {
        "retell": ("r", ("r",)),
        "cartesia": ("c", ("cs",)),
        "ultravox": ("u", ("us",)),
    }
    assert {name: sink.sink for name, sink in settings.sinks.items()} == {"slack": Slack, "webhook": Webhook}
    assert settings.sinks["slack"].events == Slack.events
    assert settings.sinks["webhook"].events == ("*",)


def test_without_a_sink_there_is_none_and_never_the_console(configured: Load) -> None:
    assert configured(RETELL_API_KEY="r").sinks == {}


def test_host_port_and_redis_come_from_the_environment(configured: Load) -> None:
    settings = configured(RETELL_API_KEY="r", HOST="127.0.0.1", PORT="9100", REDIS_URL="rediss://:pw@db.example:6380/1")
    assert (settings.host, settings.port, settings.redis_url) == ("127.0.0.1", 9100, "rediss://:pw@db.example:6380/1")


def test_host_and_port_have_defaults(configured: Load) -> None:
    settings = configured(RETELL_API_KEY="r", HOST="", PORT="")
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ("CARTESIA_API_KEY", "CARTESIA_WEBHOOK_SECRET"),
        ("CARTESIA_WEBHOOK_SECRET", "CARTESIA_API_KEY"),
        ("ULTRAVOX_API_KEY", "ULTRAVOX_WEBHOOK_SECRET"),
        ("ULTRAVOX_WEBHOOK_SECRET", "ULTRAVOX_API_KEY"),
        ("SINK_WEBHOOK_URL", "SINK_WEBHOOK_SECRET"),
        ("SINK_WEBHOOK_SECRET", "SINK_WEBHOOK_URL"),
    ],
)
def test_half_a_pair_names_the_variable_that_is_missing(problems: Problems, given: str, missing: str) -> None:
    (problem,) = problems(RETELL_API_KEY="r", **{given: "https://example.com/half"})
    assert problem.startswith(f"{missing}: missing")
    assert given in problem
    assert "https://example.com/half" not in problem


def test_an_empty_variable_is_as_good_as_none(problems: Problems) -> None:
    (problem,) = problems(CARTESIA_API_KEY="c", CARTESIA_WEBHOOK_SECRET="")
    assert problem.startswith("CARTESIA_WEBHOOK_SECRET: missing")


def test_nothing_configured_says_what_to_set(problems: Problems) -> None:
    (problem,) = problems()
    assert problem.startswith("accounts: none is configured")
    assert {"RETELL_API_KEY", "CARTESIA_WEBHOOK_SECRET", "ULTRAVOX_API_KEY"} <= set(re.findall(r"[A-Z_]{5,}", problem))


def test_where_there_is_a_file_the_variables_that_stand_for_one_are_not_advised(problems: Problems) -> None:
    assert problems("[retention]\n", RETELL_API_KEY="key_7") == (
        "accounts: none is configured; write an [accounts.<name>] table",
    )


def test_every_variable_read_is_described(configured: Load, tmp_path: Path) -> None:
    class Recording(dict[str, str]):
        asked: set[str] = set()

        def get(self, key: str, default: Any = None) -> Any:
            self.asked.add(key)
            return super().get(key, default)

    load(Recording(REDIS, RETELL_API_KEY="r"), tmp_path)
    assert Recording.asked == set(ENVIRONMENT)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://localhost:6379",
        "localhost:6379",
        "redis://localhost:port/0",
        "redis://:pass[word@localhost:6379/0",
        "redis://:ca\N{ACCOUNT OF}fe@localhost:6379/0",
    ],
)
def test_a_redis_url_that_cannot_be_used_is_a_problem_of_that_variable(problems: Problems, url: str) -> None:
    (problem,) = problems(RETELL_API_KEY="r", REDIS_URL=url)
    assert problem.startswith("REDIS_URL: ")
    assert "redis://" in problem
    assert "pass" not in problem
    assert "fe@" not in problem


@pytest.mark.parametrize("environ", [{}, {"REDIS_URL": "localhost:6379"}])
def test_what_needs_no_redis_starts_without_one(environ: dict[str, str], tmp_path: Path) -> None:
    settings = load({"RETELL_API_KEY": "r", **environ}, tmp_path, need_redis=False)
    assert (list(settings.accounts), settings.redis_url) == (["retell"], "")


def test_what_needs_no_redis_needs_all_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({"CARTESIA_API_KEY": "c", "PORT": "none"}, tmp_path, need_redis=False)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["CARTESIA_WEBHOOK_SECRET", "PORT"]


def test_redis_is_needed_unless_told_otherwise(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL: missing"):
        load({"RETELL_API_KEY": "r"}, tmp_path)


@pytest.mark.parametrize("url", ["redis://h:6379/0", "rediss://:p%40ss@h:6380", "unix:///run/valkey.sock?db=1"])
def test_the_three_kinds_of_redis_url_are_taken(configured: Load, url: str) -> None:
    assert configured(RETELL_API_KEY="r", REDIS_URL=url).redis_url == url


@pytest.mark.parametrize("port", ["http", "0", "-1", "65536", "80.5", "8000 "])
def test_a_bad_port_is_a_problem(problems: Problems, port: str) -> None:
    (problem,) = problems(RETELL_API_KEY="r", PORT=port)
    assert problem.startswith("PORT: expected a number from 1 to 65535")


# The file

WHOLE = f"""
[accounts.acme]
provider = "retell"
api_key = "${{ACME_RETELL_KEY}}"
webhook_secrets = ["${{ACME_RETELL_KEY}}", "key_before"]
base_url = "https://api.example.com"
tags = {{ client = "acme" }}

[accounts.bright]
provider = "ultravox"
api_key = "uv_key"
webhook_secrets = ["uv_secret"]

[sinks.ops]
type = "webhook"
url = "https://${{HOOK_HOST}}/hook"
secret = "{WHSEC}"
events = ["call.settled", "call.ended"]
accounts = ["acme"]
redact = ["transcript", "numbers"]
timeout = "2.5s"
retry = ["500ms", "5s", "5m", "2h", "1d"]
allow_private_network = true

[sinks.screen]
type = "console"
format = "json"

[retention]
events = "30d"
settle_after = "5m"
"""


def test_the_whole_vocabulary_of_the_file_is_read(configured: Load) -> None:
    settings = configured(WHOLE, ACME_RETELL_KEY="key_now", HOOK_HOST="example.com")

    acme = settings.accounts["acme"]
    assert (acme.name, acme.provider, acme.api_key, acme.base_url, acme.tags) == (
        "acme",
        "retell",
        "key_now",
        "https://api.example.com",
        {"client": "acme"},
    )
    assert acme.webhook_secrets == ("key_now", "key_before")
    assert settings.accounts["bright"].webhook_secrets == ("uv_secret",)

    ops = settings.sinks["ops"]
    assert (ops.name, ops.sink_type, ops.sink) == ("ops", "webhook", Webhook)
    assert isinstance(ops.config, Webhook.Config)
    assert (ops.config.url, ops.config.secret) == ("https://example.com/hook", WHSEC)
    assert (ops.events, ops.accounts, ops.redact) == (
        ("call.settled", "call.ended"),
        ("acme",),
        ("transcript", "numbers"),
    )
    assert (ops.timeout_s, ops.retry_s) == (2.5, (0.5, 5.0, 300.0, 7200.0, 86400.0))
    assert ops.allow_private_network

    screen = settings.sinks["screen"]
    assert isinstance(screen.config, Console.Config)
    assert screen.config.format == "json"
    assert (settings.retention_s, settings.settle_after_s) == (30 * 86400.0, 300.0)


def test_what_a_sink_does_not_say_has_the_defaults_of_the_contract(configured: Load) -> None:
    settings = configured(ACCOUNT + SINK)
    ops = settings.sinks["ops"]
    assert (ops.events, ops.accounts, ops.redact, ops.timeout_s, ops.allow_private_network) == (
        ("*",),
        None,
        (),
        10.0,
        False,
    )
    assert ops.retry_s == (5, 30, 300, 1800, 7200, 28800, 86400)
    assert (settings.retention_s, settings.settle_after_s) == (7 * 86400.0, 600.0)


def test_an_account_of_retell_verifies_with_its_api_key_unless_told_otherwise(configured: Load) -> None:
    assert configured(ACCOUNT).accounts["harbour"].webhook_secrets == ("key_harbour",)
    told = configured(ACCOUNT + 'webhook_secrets = ["badge"]\n')
    assert told.accounts["harbour"].webhook_secrets == ("badge",)


def test_with_a_file_the_environment_makes_no_accounts(configured: Load) -> None:
    assert list(configured(ACCOUNT, ULTRAVOX_API_KEY="u", CARTESIA_API_KEY="half").accounts) == ["harbour"]


def test_a_named_file_is_read_instead_of_the_default_one(configured: Load, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(ACCOUNT.replace("harbour", "lighthouse"))
    assert list(configured(ACCOUNT, AFTERCALL_CONFIG="other.toml").accounts) == ["lighthouse"]
    assert list(configured(None, AFTERCALL_CONFIG=str(tmp_path / "other.toml")).accounts) == ["lighthouse"]


def test_a_named_file_that_is_missing_is_a_problem_and_not_an_empty_configuration(problems: Problems) -> None:
    (problem,) = problems(None, AFTERCALL_CONFIG="nowhere.toml", RETELL_API_KEY="r")
    assert problem.startswith("AFTERCALL_CONFIG: cannot read ")
    assert "nowhere.toml: No such file" in problem


def test_a_file_that_is_not_toml_says_where(problems: Problems) -> None:
    (problem,) = problems(ACCOUNT + 'base_url = = "hunter2"\n')
    assert problem.startswith("aftercall.toml: not valid TOML: ")
    assert "line 4" in problem
    assert "hunter2" not in problem


def test_a_file_that_is_not_utf8_is_a_problem(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "aftercall.toml").write_bytes(b'[accounts.a]\nprovider = "\xff"\n')
    (problem,) = problems()
    assert problem.startswith("aftercall.toml: not valid TOML: ")


def test_a_variable_is_read_anywhere_in_a_string_and_not_read_again_in_its_own_value(configured: Load) -> None:
    toml = ACCOUNT + 'base_url = "https://${HOST_NAME}:${HOST_PORT}/v1"\ntags = { note = "${NESTED}" }\n'
    account = configured(toml, HOST_NAME="api.example", HOST_PORT="8443", NESTED="${HOST_NAME}").accounts["harbour"]
    assert account.base_url == "https://api.example:8443/v1"
    assert account.tags == {"note": "${HOST_NAME}"}


# Problems, each with the path of its key


def test_an_unknown_key_is_refused_in_the_words_of_the_contract(problems: Problems) -> None:
    assert problems(ACCOUNT + SINK + 'retyr = ["5s"]\n') == ('sinks.ops.retyr: unknown key; did you mean "retry"?',)


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        (ACCOUNT + 'api_kee = "x"\n', 'accounts.harbour.api_kee: unknown key; did you mean "api_key"?'),
        (ACCOUNT + "[sink.ops]\n", 'sink: unknown key; did you mean "sinks"?'),
        (ACCOUNT + '[retention]\nevent = "7d"\n', 'retention.event: unknown key; did you mean "events"?'),
        (ACCOUNT + SINK + 'secrte = "x"\n', 'sinks.ops.secrte: unknown key; did you mean "secret"?'),
        (ACCOUNT + SINK + 'event = ["*"]\n', 'sinks.ops.event: unknown key; did you mean "events"?'),
        (
            ACCOUNT + SINK + 'events = ["call.setled"]\n',
            'sinks.ops.events: unknown word "call.setled"; did you mean "call.settled"?',
        ),
        (ACCOUNT + SINK + 'accounts = ["harbor"]\n', 'sinks.ops.accounts: unknown word "harbor"; did you mean'),
        (ACCOUNT + SINK + 'redact = ["transcripts"]\n', 'sinks.ops.redact: unknown word "transcripts"; did you mean'),
        ('[accounts.a]\nprovider = "retel"\n', 'accounts.a.provider: no provider "retel"; did you mean "retell"?'),
        (ACCOUNT + '[sinks.s]\ntype = "wehbook"\n', 'sinks.s.type: no sink "wehbook"; did you mean "webhook"?'),
    ],
)
def test_a_misspelt_word_is_refused_with_the_likely_meaning(problems: Problems, toml: str, problem: str) -> None:
    (found,) = problems(toml)
    assert found.startswith(problem)


def test_a_word_like_no_other_is_refused_with_what_there_is(problems: Problems) -> None:
    (key, provider) = problems(ACCOUNT + 'zzz = 1\n[accounts.b]\nprovider = "qqq"\n')
    assert key == "accounts.harbour.zzz: unknown key; there are provider, api_key, webhook_secrets, base_url, tags"
    assert provider.startswith('accounts.b.provider: no provider "qqq"; there are cartesia, retell, ultravox')
    assert "module:Class" in provider


def test_call_unknown_cannot_be_asked_for_by_name(problems: Problems) -> None:
    (problem,) = problems(ACCOUNT + SINK + 'events = ["call.unknown"]\n')
    assert problem.startswith('sinks.ops.events: unknown word "call.unknown"')


@pytest.mark.parametrize(("rate", "per_s"), [("10/s", 10), ("90/m", 1.5), ("36/h", 0.01), ("0.5/s", 0.5)])
def test_a_rate_is_so_many_a_second(configured: Load, rate: str, per_s: float) -> None:
    assert configured(ACCOUNT + SINK + f'rate = "{rate}"\n').sinks["ops"].rate_per_s == pytest.approx(per_s)


@pytest.mark.parametrize("rate", ["10", "10/d", "fast", "0/s", "-1/s"])
def test_what_is_no_rate_is_refused(problems: Problems, rate: str) -> None:
    (problem,) = problems(ACCOUNT + SINK + f'rate = "{rate}"\n')
    assert problem.startswith("sinks.ops.rate: not a rate; write a number and /s")


@pytest.mark.parametrize(
    ("where", "words"),
    [("call.", "not a CEL expression"), ("1 +", "not a CEL expression"), ("cal.status == 'ended'", "there is no cal")],
)
def test_a_where_that_cannot_be_asked_is_refused_at_the_start(problems: Problems, where: str, words: str) -> None:
    (problem,) = problems(ACCOUNT + SINK + f'where = "{where}"\n')
    assert problem.startswith("sinks.ops.where: ")
    assert words in problem


# Routing


CLIENTS = """
[clients.mill]
agents = ["agent_mill", "Mill desk"]
numbers = ["+15550100177"]

[clients.quay]
accounts = ["harbour"]
where = 'call.metadata.client == "quay"'
"""


def test_a_sink_may_ask_for_agents_numbers_and_clients(configured: Load) -> None:
    routed = SINK + 'agents = ["agent_1"]\nnumbers = ["+15550100123"]\nclients = ["quay"]\n'
    settings = configured(ACCOUNT + CLIENTS + routed)
    ops = settings.sinks["ops"]
    assert (ops.agents, ops.numbers) == (("agent_1",), ("+15550100123",))
    assert ops.clients == (settings.clients["quay"],)
    assert settings.clients["mill"].agents == ("agent_mill", "Mill desk")


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ('[clients.mill]\nagent = ["a"]\n', 'clients.mill.agent: unknown key; did you mean "agents"?'),
        (
            '[clients.mill]\nwhere = ""\n',
            "clients.mill: say which calls are its own, with accounts, agents, numbers or where",
        ),
        ("[clients.mill]\n", "clients.mill: say which calls are its own, with accounts, agents, numbers or where"),
        (
            '[clients.mill]\naccounts = ["harbor"]\n',
            'clients.mill.accounts: unknown word "harbor"; did you mean "harbour"?',
        ),
        (
            "[clients.mill]\nwhere = 'call.anlysis.successful'\n",
            'clients.mill.where: call has no anlysis; did you mean "analysis"?',
        ),
        ('[clients.mill]\nagents = "a"\n', "clients.mill.agents: Expected `array | null`, got `str`"),
        ('[clients."no name"]\nagents = ["a"]\n', "clients.no name: a name is 1 to 64 letters, digits, _ and -"),
    ],
)
def test_what_is_wrong_with_a_client_is_told_by_its_path(problems: Problems, toml: str, problem: str) -> None:
    assert problems(ACCOUNT + toml) == (problem,)


def test_a_client_that_is_not_there_is_told_with_the_likely_one(problems: Problems) -> None:
    assert problems(ACCOUNT + CLIENTS + SINK + 'clients = ["quai"]\n') == (
        'sinks.ops.clients: unknown word "quai"; did you mean "quay"?',
    )


def test_an_event_is_tagged_with_the_first_client_that_has_its_call(configured: Load) -> None:
    settings = configured(ACCOUNT + 'tags = { region = "north" }\n' + CLIENTS)
    call = a_call(account="harbour", to="+15550100177", agent=Agent(id="agent_mill"), metadata={"client": "quay"})
    assert settings.tags(an_event(call=call)) == {"client": "mill", "region": "north"}
    other = a_call(account="harbour", metadata={"client": "quay"})
    assert settings.tags(an_event(call=other)) == {"client": "quay", "region": "north"}
    assert settings.tags(an_event(call=a_call(account="harbour"))) == {"region": "north"}


def test_a_client_may_be_told_by_its_account_s_tags(configured: Load) -> None:
    by_region = "[clients.mill]\nwhere = 'tags.region == \"north\"'\n"
    settings = configured(ACCOUNT + 'tags = { region = "north" }\n' + by_region)
    call = a_call(account="harbour")
    assert settings.tags(an_event(call=call, tags={})) == {"client": "mill", "region": "north"}


def test_a_client_named_by_the_account_s_tags_stays(configured: Load) -> None:
    settings = configured(ACCOUNT + 'tags = { client = "owner" }\n' + CLIENTS)
    call = a_call(account="harbour", metadata={"client": "quay"})
    assert settings.tags(an_event(call=call)) == {"client": "owner"}


# Bodies of the provider's own, recordings of an archive

S3 = '[sinks.archive]\ntype = "tests.test_settings:Archive"\n'


class Archive(Sink):
    async def archived_recording(self, call: Call) -> Recording | None: ...

    async def deliver(self, delivery: Delivery) -> None: ...


def test_a_sink_that_passes_bodies_on_may_ask_for_the_provider_s_own(configured: Load) -> None:
    assert configured(ACCOUNT + SINK + 'format = "raw"\n').sinks["ops"].format == "raw"
    assert configured(ACCOUNT + SINK).sinks["ops"].format == "event"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ('format = "Raw"', 'sinks.ops.format: unknown word "Raw"; did you mean "raw"?'),
        ('format = "raw"\nevents = ["call.settled"]', "sinks.ops.events: aftercall makes call.settled itself"),
        ('format = "raw"\nredact = ["numbers"]', "sinks.ops.redact: has no effect on a provider's own body"),
        ('format = "raw"\nrecording_from = "archive"', "sinks.ops.recording_from: has no effect on a provider's own"),
        ('recording_from = "archiv"', 'sinks.ops.recording_from: unknown sink "archiv"; did you mean "archive"?'),
        (
            'redact = ["recording"]\nrecording_from = "archive"',
            "sinks.ops.recording_from: redact takes the recording out; leave out one of the two",
        ),
        ('recording_from = "ops"', 'sinks.ops.recording_from: "ops" keeps no recordings; name an s3 sink'),
    ],
)
def test_what_cannot_be_done_with_a_body_or_a_recording_is_refused(
    problems: Problems, options: str, problem: str
) -> None:
    (told,) = problems(ACCOUNT + S3 + SINK + options + "\n")
    assert told.startswith(problem)


def test_a_sink_that_makes_messages_of_its_own_has_no_raw_format(problems: Problems) -> None:
    slack = '[sinks.chat]\ntype = "slack"\nurl = "https://hooks.example.com/x"\nevents = ["*"]\nformat = "raw"\n'
    (problem,) = problems(ACCOUNT + slack)
    assert problem.startswith("sinks.chat.format: slack makes a message of its own")


def test_a_sink_may_take_its_recordings_from_an_archive(configured: Load) -> None:
    assert configured(ACCOUNT + S3 + SINK + 'recording_from = "archive"\n').sinks["ops"].recording_from == "archive"


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("number", 'sinks.ops.redact: unknown word "number"; did you mean "numbers"?'),
        ("call.analysis.sumary", 'sinks.ops.redact: call.analysis has no sumary; did you mean "summary"?'),
        ("call.id", "sinks.ops.redact: call.id is in every event, and cannot be left out"),
        ("event.time", "sinks.ops.redact: not a path; write it as in call.metadata.card"),
    ],
)
def test_a_redaction_that_would_do_nothing_is_refused(problems: Problems, word: str, problem: str) -> None:
    assert problems(ACCOUNT + SINK + f'redact = ["{word}", "call.metadata.card"]\n') == (problem,)


def test_every_problem_is_told_at_once(problems: Problems) -> None:
    toml = """
    [accounts.acme]
    provider = "retel"
    [accounts.bright]
    provider = "ultravox"
    api_key = "${NOT_THERE}"
    [sinks.ops]
    type = "webhook"
    url = 5
    retyr = ["5s"]
    timeout = 7
    [sinks.other]
    [retention]
    events = "a week"
    """
    found = problems(textwrap.dedent(toml), REDIS_URL="", PORT="x")
    paths = {problem.partition(": ")[0] for problem in found}
    assert paths == {
        "accounts.acme.provider",
        "accounts.bright.api_key",
        "accounts.bright.webhook_secrets",
        "sinks.ops.url",
        "sinks.ops.retyr",
        "sinks.ops.timeout",
        "sinks.ops.secret",
        "sinks.other.type",
        "retention.events",
        "REDIS_URL",
        "PORT",
    }


def test_an_unset_variable_is_named_with_the_path_of_its_key(problems: Problems) -> None:
    toml = ACCOUNT + 'webhook_secrets = ["now", "${BEFORE}"]\n' + SINK.replace(WHSEC, "${SIGNING}")
    found = problems(toml, SIGNING="")
    assert "accounts.harbour.webhook_secrets[1]: ${BEFORE} is not set in the environment" in found
    assert "sinks.ops.secret: ${SIGNING} is not set in the environment" in found


@pytest.mark.parametrize(
    ("toml", "path"),
    [
        ('[accounts.a]\nprovider = "retell"\n', "accounts.a.api_key"),
        ('[accounts.a]\nprovider = "retell"\napi_key = ""\n', "accounts.a.api_key"),
        ('[accounts.a]\nprovider = "cartesia"\nwebhook_secrets = ["s"]\n', "accounts.a.api_key"),
        ('[accounts.a]\nprovider = "cartesia"\napi_key = "k"\n', "accounts.a.webhook_secrets"),
        ('[accounts.a]\nprovider = "cartesia"\napi_key = "k"\nwebhook_secrets = []\n', "accounts.a.webhook_secrets"),
        (
            '[accounts.a]\nprovider = "ultravox"\napi_key = "k"\nwebhook_secrets = ["s", ""]\n',
            "accounts.a.webhook_secrets",
        ),
        ('[accounts.a]\nprovider = "retell"\napi_key = "k"\nwebhook_secrets = [""]\n', "accounts.a.webhook_secrets"),
        ('[accounts.a]\nprovider = "retell"\napi_key = "k"\nwebhook_secrets = []\n', "accounts.a.webhook_secrets"),
        (ACCOUNT + '[sinks.s]\ntype = "webhook"\nurl = "https://example.com"\n', "sinks.s.secret"),
        (ACCOUNT + '[sinks.s]\ntype = "webhook"\nurl = "https://example.com"\nsecret = ""\n', "sinks.s.secret"),
        (ACCOUNT + '[sinks.s]\ntype = "slack"\n', "sinks.s.url"),
        (ACCOUNT + '[sinks.s]\ntype = "slack"\nurl = ""\n', "sinks.s.url"),
        (ACCOUNT + '[sinks.s]\ntype = "redis_stream"\n', "sinks.s.url"),
    ],
)
def test_a_missing_or_empty_secret_stops_the_start(problems: Problems, toml: str, path: str) -> None:
    (problem,) = problems(toml)
    assert problem.startswith(f"{path}: ")


@pytest.mark.parametrize("secret", ["whsec_hunter2!", "whsec_", "hunter2-hunter2", "whsec_hunter2\u00e9"])
def test_a_webhook_secret_that_is_not_base64_is_named_with_the_form_expected(problems: Problems, secret: str) -> None:
    (problem,) = problems(ACCOUNT + SINK.replace(WHSEC, secret))
    assert problem.startswith("sinks.ops.secret: ")
    assert "whsec_ and 24 to 64 random bytes in base64" in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize("url", ["example.com/hook", "ftp://example.com/hook", "https://", "http://[::1/hook"])
def test_a_webhook_url_that_is_none_is_named_with_the_form_expected(problems: Problems, url: str) -> None:
    (problem,) = problems(ACCOUNT + SINK.replace("https://example.com/hook", url))
    assert problem.startswith("sinks.ops.url: ")
    assert "https://" in problem


@pytest.mark.parametrize("url", ["api.example.com", "ftp://api.example.com", "http://[api.example.com"])
def test_a_base_url_must_be_http(problems: Problems, url: str) -> None:
    (problem,) = problems(ACCOUNT + f'base_url = "{url}"\n')
    assert problem == "accounts.harbour.base_url: expected an http:// or https:// URL"


@pytest.mark.parametrize("text", ["soon", "5", "5 s", "-5s", "5min", "", "1e3s", "s"])
def test_a_bad_duration_is_named_with_the_form_expected(problems: Problems, text: str) -> None:
    found = problems(ACCOUNT + SINK + f'timeout = "{text}"\nretry = ["5s", "{text}"]\n[retention]\nevents = "{text}"\n')
    assert [problem.partition(": ")[0] for problem in found] == [
        "sinks.ops.timeout",
        "sinks.ops.retry[1]",
        "retention.events",
    ]
    assert all('write a number and ms, s, m, h or d, as in "30s"' in problem for problem in found)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("5s", 5), ("1.5m", 90), ("2h", 7200), ("7d", 604800), ("0s", 0)]
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("timeout", ["30.001s", "31s", "1m", "0s", "0ms"])
def test_a_timeout_of_nothing_or_over_the_limit_is_refused(problems: Problems, timeout: str) -> None:
    (problem,) = problems(ACCOUNT + SINK + f'timeout = "{timeout}"\n')
    assert problem == "sinks.ops.timeout: expected more than 0 and at most 30s"


@pytest.mark.parametrize(("timeout", "seconds"), [("30s", 30.0), ("1ms", 0.001)])
def test_a_timeout_up_to_the_limit_is_taken(configured: Load, timeout: str, seconds: float) -> None:
    assert configured(ACCOUNT + SINK + f'timeout = "{timeout}"\n').sinks["ops"].timeout_s == seconds


def test_a_retention_of_nothing_is_refused_because_duplicates_would_pass(problems: Problems) -> None:
    (problem,) = problems(ACCOUNT + '[retention]\nevents = "0s"\n')
    assert problem.startswith("retention.events: ")


@pytest.mark.parametrize("name", ["a b", "", "-a", "@process", "a/b", "a|b", "a" * 65, "ünder"])
def test_a_name_that_does_not_fit_into_a_url_is_refused(problems: Problems, name: str) -> None:
    toml = f'[accounts.{json.dumps(name)}]\nprovider = "retell"\napi_key = "k"\n[sinks."{name}"]\ntype = "console"\n'
    assert problems(toml) == (
        f"accounts.{name}: a name is 1 to 64 letters, digits, _ and -",
        f"sinks.{name}: a name is 1 to 64 letters, digits, _ and -",
    )


def test_the_place_inside_a_value_is_told_in_balanced_words(problems: Problems) -> None:
    tags, retry = problems(ACCOUNT + "tags = { tier = 1 }\n" + SINK + 'retry = ["5s", 5]\n')
    assert tags.startswith("accounts.harbour.tags")
    assert retry.startswith("sinks.ops.retry")
    assert "[1]" in retry
    assert all(problem.count("(") == problem.count(")") for problem in (tags, retry))
    assert all(problem.count("`") % 2 == 0 for problem in (tags, retry))


def toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value)


VALID: dict[str, Any] = {
    "accounts": {
        "harbour": {
            "provider": "cartesia",
            "api_key": "k",
            "webhook_secrets": ["s"],
            "base_url": "https://api.example.com",
            "tags": {"client": "acme"},
        }
    },
    "sinks": {
        "ops": {
            "type": "webhook",
            "url": "https://example.com/hook",
            "secret": WHSEC,
            "events": ["*"],
            "accounts": ["harbour"],
            "redact": ["numbers"],
            "timeout": "5s",
            "retry": ["5s"],
            "allow_private_network": False,
        },
        "stream": {"type": "redis_stream", "url": "redis://localhost", "max_length": 10},
    },
    "retention": {"events": "7d", "settle_after": "10m"},
}


def key_paths(table: dict[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in table.items():
        found.append((*before, key))
        if isinstance(value, dict):
            found += key_paths(value, (*before, key))
    return found


def replaced(table: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    key, *rest = path
    return {**table, key: replaced(table[key], tuple(rest), value) if rest else value}


ODD = [0, True, "", "[", ".x:Y", "https://[", "redis://\u2100@h", "${", [], [""], [1], {}, {"a": 1}]


def test_the_table_that_the_next_test_spoils_is_valid(configured: Load) -> None:
    settings = configured("\n".join(f"{key} = {toml_value(value)}" for key, value in VALID.items()))
    assert (len(settings.accounts), len(settings.sinks)) == (1, 2)


@pytest.mark.parametrize("path", key_paths(VALID), ids=".".join)
def test_whatever_stands_at_a_key_becomes_settings_or_problems_and_nothing_else(
    path: tuple[str, ...], tmp_path: Path
) -> None:
    for value in ODD:
        tables = replaced(VALID, path, value)
        toml = "\n".join(f"{key} = {toml_value(item)}" for key, item in tables.items())
        (tmp_path / "aftercall.toml").write_text(toml, "utf-8")
        try:
            load(REDIS, tmp_path)
        except ConfigurationError:
            continue
        except Exception as error:
            pytest.fail(f"{'.'.join(path)} = {value!r} ends in {type(error).__name__}: {error}")


# Secrets


@pytest.mark.parametrize(
    "toml",
    [
        '[accounts.a]\nprovider = "cartesia"\napi_key = ["hunter2"]\nwebhook_secrets = "hunter2"\n',
        '[accounts.a]\nprovider = "retell"\napi_key = "hunter2"\nbase_url = "hunter2"\n',
        '[accounts.a]\nprovider = "retell"\napi_key = "${HUNTER}"\nbase_url = "ftp://${HUNTER}"\n',
        ACCOUNT + SINK.replace("https://example.com", "https://joe:hunter2\N{ACCOUNT OF}@example.com"),
        ACCOUNT + SINK.replace("https://example.com", "ftp://joe:hunter2@example.com"),
        ACCOUNT + '[sinks.s]\ntype = "redis_stream"\nurl = "redis://:hunter2\N{ACCOUNT OF}@h"\n',
        ACCOUNT + '[sinks.s]\ntype = "redis_stream"\nurl = "http://:hunter2@h"\n',
        ACCOUNT + '[sinks.s]\ntype = "slack"\nurl = "hooks.slack.com/services/T0/B0/hunter2"\n',
        ACCOUNT + '[sinks.s]\ntype = "slack"\nurl = ["https://hooks.slack.com/services/T0/B0/hunter2"]\n',
    ],
)
def test_a_problem_names_the_key_and_never_what_stands_there(problems: Problems, toml: str) -> None:
    found = problems(toml, HUNTER="hunter2")
    assert all(re.match(r"(accounts|sinks)\.\w+", problem) for problem in found)
    assert "hunter2" not in "".join(found)


def test_no_secret_is_in_the_repr_of_anything_loaded(configured: Load) -> None:
    settings = configured(
        '[accounts.a]\nprovider = "cartesia"\napi_key = "hunter2"\nwebhook_secrets = ["hunter2"]\n'
        '[sinks.team]\ntype = "slack"\nurl = "https://hooks.slack.com/services/T0/B0/hunter2"\n'
        '[sinks.stream]\ntype = "redis_stream"\nurl = "redis://:hunter2@localhost"\n'
        f'[sinks.ops]\ntype = "webhook"\nurl = "https://example.com"\nsecret = "{WHSEC}"\n',
        REDIS_URL="redis://:hunter2@localhost",
    )
    shown = f"{settings!r} {settings} {settings.accounts!r} {settings.sinks!r} {[*settings.sinks.values()]}"
    assert "hunter2" not in shown
    assert WHSEC not in shown
    assert "timeout_s=10.0" in shown  # what is no secret is shown


def test_a_secret_is_masked_however_the_option_is_declared() -> None:
    class Config(SinkConfig, frozen=True):
        token: Secret
        described: Annotated[Secret, Meta(description="a token")] = "x"
        optional: Secret | None = None
        rotated: list[Secret] = []
        room: str = "lobby"

    shown = repr(Config(token="hunter2", described="hunter2", optional="hunter2", rotated=["hunter2"]))
    assert "room='lobby'" in shown
    assert "hunter2" not in shown


def test_what_is_loaded_is_frozen(configured: Load) -> None:
    settings = configured(ACCOUNT + SINK)
    for thing, field in (
        (settings, "port"),
        (settings.accounts["harbour"], "api_key"),
        (settings.sinks["ops"], "sink"),
    ):
        with pytest.raises(AttributeError):
            setattr(thing, field, None)


# A sink of somebody else's

PLUGIN = """
import msgspec
from aftercall.sinks.base import Secret, Sink, SinkConfig


class Pager(Sink):
    events = ("call.ended",)

    class Config(SinkConfig, frozen=True):
        token: Secret
        urgency: str = "low"

        def __post_init__(self):
            if self.urgency not in ("low", "high"):
                raise ValueError("urgency must be low or high")

    async def deliver(self, delivery):
        pass
"""


@pytest.fixture
def pager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sink in a module of its own, as `module:Class`."""
    (tmp_path / "aftercall_pager_example.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "aftercall_pager_example", raising=False)
    return "aftercall_pager_example:Pager"


def test_a_sink_named_by_module_and_class_has_its_own_options_beside_the_common_ones(
    configured: Load, pager: str
) -> None:
    toml = f'{ACCOUNT}[sinks.p]\ntype = "{pager}"\ntoken = "hunter2"\nurgency = "high"\ntimeout = "1s"\n'
    sink = configured(toml).sinks["p"]
    assert (sink.sink.__name__, sink.sink_type, sink.timeout_s, sink.events) == ("Pager", pager, 1.0, ("call.ended",))
    assert (sink.config.token, sink.config.urgency) == ("hunter2", "high")  # type: ignore[attr-defined]
    assert "hunter2" not in repr(sink)


def test_the_options_of_a_foreign_sink_are_checked_like_a_built_in_ones(problems: Problems, pager: str) -> None:
    found = problems(f'{ACCOUNT}[sinks.p]\ntype = "{pager}"\nurgencee = "high"\n')
    assert found == (
        'sinks.p.urgencee: unknown key; did you mean "urgency"?',
        "sinks.p.token: missing",
    )
    (problem,) = problems(f'{ACCOUNT}[sinks.p]\ntype = "{pager}"\ntoken = "hunter2"\nurgency = "panic"\n')
    assert problem.startswith("sinks.p")
    assert problem.endswith("urgency must be low or high")


def test_a_secret_that_is_not_text_is_refused_and_not_quoted(tmp_path: Path) -> None:
    environ = {"REDIS_URL": "redis://localhost", "RETELL_API_KEY": "key_\udcff1"}
    with pytest.raises(ConfigurationError) as raised:
        load(environ, tmp_path)
    assert "accounts.retell.api_key: not UTF-8 text" in raised.value.problems
    assert "key_" not in str(raised.value)


def test_a_variable_that_is_not_unicode_is_a_problem_of_each_key_that_names_it(problems: Problems) -> None:
    sink = SINK + 'format = "${ODD}"\nagents = ["front", "${ODD}"]\n'
    found = problems(ACCOUNT + sink, ODD="caf\udce9")
    assert {"sinks.ops.format: ${ODD} is not UTF-8 text", "sinks.ops.agents[1]: ${ODD} is not UTF-8 text"} <= {*found}


def test_a_file_may_begin_with_a_byte_order_mark(configured: Load) -> None:
    assert list(configured("\ufeff" + ACCOUNT).accounts) == ["harbour"]


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ('format = "xml"', 'sinks.ops.format: unknown word "xml"; there are event, raw'),
    ],
)
def test_a_word_that_an_option_does_not_know_is_told_with_those_it_does(
    problems: Problems, option: str, problem: str
) -> None:
    assert problems(ACCOUNT + SINK + option + "\n") == (problem,)


@pytest.mark.parametrize("option", ['retry = ["{}d"]', 'retry = ["1s", "4000d"]'])
def test_a_wait_without_end_is_a_problem_and_not_an_overflow_at_the_first_retry(
    problems: Problems, option: str
) -> None:
    (problem,) = problems(ACCOUNT + SINK + option.format("9" * 400) + "\n")
    assert problem.startswith("sinks.ops.retry[")
    assert problem.endswith("at most 3650d")
    assert problems(ACCOUNT + f'[retention]\nsettle_after = "{"9" * 400}d"\n') == (
        "retention.settle_after: at most 3650d",
    )


def test_a_foreign_config_that_fails_is_a_problem_with_its_path_and_without_its_words(
    problems: Problems, pager: str, tmp_path: Path
) -> None:
    broken = PLUGIN.replace("ValueError", "KeyError").replace('"urgency must be low or high"', "self.token")
    (tmp_path / "aftercall_pager_example.py").write_text(broken)
    found = problems(f'{ACCOUNT}[sinks.p]\ntype = "{pager}"\ntoken = "hunter2"\nurgency = "panic"\n')
    assert found == ("sinks.p: its options cannot be read: KeyError in Pager.Config",)


@pytest.mark.parametrize("word", ["timeout", "events", "retry"])
def test_an_option_of_a_sinks_own_may_not_be_called_as_one_that_every_sink_has(
    problems: Problems, pager: str, tmp_path: Path, word: str
) -> None:
    taken = PLUGIN.replace('urgency: str = "low"', f'urgency: str = "low"\n        {word}: int = 3')
    assert taken != PLUGIN
    (tmp_path / "aftercall_pager_example.py").write_text(taken)
    found = problems(f'{ACCOUNT}[sinks.p]\ntype = "{pager}"\ntoken = "hunter2"\n')
    assert found == (f"sinks.p.type: its Config has the option {word}, which every sink has; give it another name",)
