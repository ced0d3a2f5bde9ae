"""Configuration: a TOML file or the environment, checked whole, frozen. The only reader of `os.environ`.

`load()` returns `Settings` or raises `ConfigurationError` with every problem at once, each with the path of its key.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec

from aftercall.errors import ConfigurationError, PluginError
from aftercall.event import CallEvent, EventType
from aftercall.plugins import provider_class, sink_class
from aftercall.providers.base import Account
from aftercall.routing import REDACTIONS, Condition, matches
from aftercall.sentinel import is_sentinel_url, parse_sentinel_url
from aftercall.sinks.base import Sink, SinkConfig, url_scheme

DEFAULT_FILE = "aftercall.toml"
ENVIRONMENT = {
    "REDIS_URL": "where the ledger is kept: redis://, rediss://, unix:// or redis+sentinel://",
    "AFTERCALL_CONFIG": "the TOML file to read; default: aftercall.toml in the working directory, if there",
    "HOST": "the address the service listens on; default 0.0.0.0",
    "PORT": "the port the service listens on; default 8000",
    "RETELL_API_KEY": "without a file: makes the account `retell`; the key with the webhook badge",
    "CARTESIA_API_KEY": "without a file: makes the account `cartesia`",
    "CARTESIA_WEBHOOK_SECRET": "without a file: the secret that Cartesia sends as X-Webhook-Secret",
    "ULTRAVOX_API_KEY": "without a file: makes the account `ultravox`",
    "ULTRAVOX_WEBHOOK_SECRET": "without a file: the secret that Ultravox signs with",
    "SLACK_WEBHOOK_URL": "without a file: makes the sink `slack`",
    "SINK_WEBHOOK_URL": "without a file: makes the sink `webhook`",
    "SINK_WEBHOOK_SECRET": "without a file: the whsec_… secret that the sink `webhook` signs with",
}
DEFAULT_RETRY = ("5s", "30s", "5m", "30m", "2h", "8h", "24h")
MAX_TIMEOUT_S = 30.0  # an attempt must end well within the worker's lease

MAX_RETENTION_S = 3650 * 86400.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_EVENTS = ("*", *(word for word in get_args(EventType) if word != "call.unknown"))  # that one comes only with "*"


class SinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One `[sinks.<name>]` table: the options every sink has, and the sink's own in `config`."""

    name: str
    sink_type: str  # as it stands in the file
    sink: type[Sink]
    config: SinkConfig
    events: tuple[str, ...]
    accounts: tuple[str, ...] | None = None  # None: all
    where: Condition | None = None  # None: always
    redact: tuple[str, ...] = ()
    timeout_s: float = 10.0
    retry_s: tuple[float, ...] = ()
    rate_per_s: float = 0.0  # 0: as fast as it goes
    allow_private_network: bool = False

    @property
    def erases(self) -> bool:
        """Whether the sink deletes what it has of a call that was erased."""
        return self.sink.erase is not Sink.erase

    def wants(self, event: CallEvent, *, told: Collection[str] = ()) -> bool:
        """Whether the event goes to this sink. `told`: the sinks that an erased call's other events went to.

        A sink that erases is told of every erased call of its accounts: what it has of the call it knows itself.
        """
        if event.type == "call.erased":
            ours = self.accounts is None or event.data.call.account in self.accounts
            if ours and (self.erases or (self.name in told and {"*", event.type} & {*self.events})):
                return True
        return matches(event, events=self.events, accounts=self.accounts, where=self.where)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    redis_url: str
    accounts: dict[str, Account]
    sinks: dict[str, SinkSettings]
    retention_s: float = 7 * 86400.0
    settle_after_s: float = 600.0
    host: str = "0.0.0.0"
    port: int = 8000

    def __repr__(self) -> str:
        return f"Settings(accounts={list(self.accounts)}, sinks={list(self.sinks)})"  # never keys or passwords


def load(
    environ: Mapping[str, str] = os.environ, directory: Path | None = None, *, need_redis: bool = True
) -> Settings:
    """The settings of this process. `environ` and `directory` stand in for the real ones in tests.

    With `need_redis=False`, for what works without the ledger, `REDIS_URL` is not looked at and `redis_url` is empty.
    """
    problems: list[str] = []
    tables = _tables(environ, directory or Path.cwd(), problems)
    accounts = {
        name: account
        for name, table in _named_tables(tables, "accounts", problems)
        if (account := _account(name, table, problems))
    }
    account_names = tables["accounts"] if isinstance(tables.get("accounts"), dict) else {}
    sinks = {
        name: sink
        for name, table in _named_tables(tables, "sinks", problems)
        if (sink := _sink(name, table, account_names, problems))
    }
    retention = _table(tables.get("retention", {}), "retention", ("events", "settle_after"), problems)
    retention_s = _duration(retention.get("events", "7d"), "retention.events", problems)
    if not 1 <= retention_s <= MAX_RETENTION_S:  # Redis would forget at once what it has just taken
        problems.append("retention.events: expected 1s to 3650d")
    settle_after_s = _duration(retention.get("settle_after", "10m"), "retention.settle_after", problems)
    if not account_names and not problems:
        problems.append(
            "accounts: none is configured; write an [accounts.<name>] table, or set RETELL_API_KEY, or CARTESIA_API_KEY"
            " and CARTESIA_WEBHOOK_SECRET, or ULTRAVOX_API_KEY and ULTRAVOX_WEBHOOK_SECRET"
        )
    settings = Settings(
        redis_url=_redis_url(environ, problems) if need_redis else "",
        accounts=accounts,
        sinks=sinks,
        retention_s=retention_s,
        settle_after_s=settle_after_s,
        host=environ.get("HOST") or "0.0.0.0",
        port=_port(environ, problems),
    )
    if problems:
        raise ConfigurationError(problems)
    return settings


def parse_duration(text: str) -> float:
    """Seconds from `500ms`, `5s`, `10m`, `2h`, `7d`; raises ValueError with the form expected."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not match:
        raise ValueError('not a duration; write a number and ms, s, m, h or d, as in "30s"')
    return float(match[1]) * _UNITS[match[2]]


def _tables(environ: Mapping[str, str], directory: Path, problems: list[str]) -> dict[str, Any]:
    """The whole configuration as plain tables, from the file if there is one, else from the environment."""
    named = environ.get("AFTERCALL_CONFIG")
    path = directory / (named or DEFAULT_FILE)
    if not named and not path.exists():
        return _from_environment(environ, problems)
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        problems.append(f"AFTERCALL_CONFIG: cannot read {path}: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path.name}: not valid TOML: {error}")
        return {}
    tables = _table(tables, "", ("accounts", "sinks", "retention"), problems)
    return {key: _substitute(value, key, environ, problems) for key, value in tables.items()}


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    accounts: dict[str, Any] = {}
    sinks: dict[str, Any] = {}

    def pair(first: str, second: str) -> tuple[str, str] | None:
        values = environ.get(first), environ.get(second)
        if values[0] and values[1]:
            return values[0], values[1]
        if values[0] or values[1]:
            missing, given = (second, first) if values[0] else (first, second)
            problems.append(f"{missing}: missing, and {given} is set; both are needed")
        return None

    if key := environ.get("RETELL_API_KEY"):
        accounts["retell"] = {"provider": "retell", "api_key": key}
    for provider in ("cartesia", "ultravox"):
        if keys := pair(f"{provider.upper()}_API_KEY", f"{provider.upper()}_WEBHOOK_SECRET"):
            accounts[provider] = {"provider": provider, "api_key": keys[0], "webhook_secrets": [keys[1]]}
    if url := environ.get("SLACK_WEBHOOK_URL"):
        sinks["slack"] = {"type": "slack", "url": url}
    if target := pair("SINK_WEBHOOK_URL", "SINK_WEBHOOK_SECRET"):
        sinks["webhook"] = {"type": "webhook", "url": target[0], "secret": target[1]}
    return {"accounts": accounts, "sinks": sinks}


def _substitute(value: Any, path: str, environ: Mapping[str, str], problems: list[str]) -> Any:
    """Replace `${NAME}` in every string of a table."""
    if isinstance(value, dict):
        return {key: _substitute(item, f"{path}.{key}", environ, problems) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, f"{path}[{index}]", environ, problems) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    problems += [
        f"{path}: ${{{name}}} is not set in the environment"
        for name in _VARIABLE.findall(value)
        if not environ.get(name)
    ]
    return _VARIABLE.sub(lambda match: environ.get(match[1], ""), value)


def _table(value: Any, path: str, allowed: Iterable[str], problems: list[str]) -> dict[str, Any]:
    """The value as a table; unknown keys are a problem each, with the likely meaning."""
    if not isinstance(value, dict):
        problems.append(f"{path}: expected a table")
        return {}
    known = tuple(allowed)
    problems += [_unknown(f"{path}.{key}".lstrip("."), "key", key, known) for key in value if key not in known]
    return value


def _unknown(path: str, what: str, word: str, known: Iterable[str]) -> str:
    known = tuple(known)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"there are {', '.join(known) or 'none'}"
    return f"{path}: unknown {what}; {hint}"


def _named_tables(tables: dict[str, Any], kind: str, problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    found = tables.get(kind, {})
    if not isinstance(found, dict):
        problems.append(f"{kind}: expected tables, as in [{kind}.<name>]")
        return []
    for name, table in found.items():
        if not _NAME.fullmatch(name):
            problems.append(f"{kind}.{name}: a name is 1 to 64 letters, digits, _ and -")
        elif not isinstance(table, dict):
            problems.append(f"{kind}.{name}: expected a table")
    return [(name, table) for name, table in found.items() if isinstance(table, dict)]


def _account(name: str, table: dict[str, Any], problems: list[str]) -> Account | None:
    path, before = f"accounts.{name}", len(problems)
    keys = ("provider", "api_key", "webhook_secrets", "base_url", "tags")
    fields = dict(_table(table, path, keys, problems))
    if "provider" not in fields:
        problems.append(f'{path}.provider: missing; name the platform, as in "retell"')
        return None
    try:
        provider = provider_class(str(fields["provider"]))
    except PluginError as error:
        problems.append(f"{path}.provider: {error}")
        return None
    if provider.needs == ("api_key",) and fields.get("api_key"):
        fields.setdefault("webhook_secrets", [fields["api_key"]])
    for key in dict.fromkeys((*provider.needs, "webhook_secrets")):
        if key not in fields and key in provider.needs:
            problems.append(f"{path}.{key}: missing; {provider.name} needs it")
        elif key in fields and (not fields[key] or (isinstance(fields[key], list) and not all(fields[key]))):
            problems.append(f"{path}.{key}: empty")
        elif key in fields and not _is_unicode(fields[key]):
            problems.append(f"{path}.{key}: not UTF-8 text")
    account = _convert({"name": name} | {key: fields[key] for key in keys if key in fields}, Account, path, problems)
    if account is not None and account.base_url and url_scheme(account.base_url) not in ("http", "https"):
        problems.append(f"{path}.base_url: expected an http:// or https:// URL")
    return account if len(problems) == before else None


class _CommonOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that every sink has, as they stand in the file."""

    type: str = ""
    events: list[str] | None = None
    accounts: list[str] | None = None
    where: str = ""
    redact: list[str] = []
    timeout: str = "10s"
    retry: tuple[str, ...] = DEFAULT_RETRY
    rate: str = ""
    allow_private_network: bool = False


_COMMON = tuple(_CommonOptions.__struct_fields__)
# Part of the configuration's vocabulary, and not there yet: better refused than silently without effect.
_LATER = ("agents", "format")


def _sink(name: str, table: dict[str, Any], accounts: Iterable[str], problems: list[str]) -> SinkSettings | None:
    path, before = f"sinks.{name}", len(problems)
    if "type" not in table:
        problems.append(f'{path}.type: missing; name a sink, as in "webhook"')
        return None
    try:
        sink = sink_class(str(table["type"]))
    except PluginError as error:
        problems.append(f"{path}.type: {error}")
        return None
    own = sink.Config.__struct_encode_fields__
    fields = _table(table, path, (*_COMMON, *own, *_LATER), problems)
    problems += [f"{path}.{key}: not available in this version" for key in _LATER if key in fields and key not in own]
    common = _convert({key: fields[key] for key in fields if key in _COMMON}, _CommonOptions, path, problems)
    config = _convert({key: fields[key] for key in fields if key in own}, sink.Config, path, problems)
    if common is None or config is None:
        return None
    for key, words, known in (
        ("events", common.events, _EVENTS),
        ("accounts", common.accounts, accounts),
        ("redact", common.redact, REDACTIONS),
    ):
        problems += [
            _unknown(f"{path}.{key}", f'word "{word}"', word, known) for word in words or () if word not in known
        ]
    timeout_s = _duration(common.timeout, f"{path}.timeout", problems)
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        problems.append(f"{path}.timeout: expected more than 0 and at most {MAX_TIMEOUT_S:.0f}s")
    retry_s = tuple(_duration(wait, f"{path}.retry[{index}]", problems) for index, wait in enumerate(common.retry))
    where = _condition(common.where, f"{path}.where", problems)
    rate_per_s = _rate(common.rate, f"{path}.rate", problems)
    if len(problems) > before:
        return None
    return SinkSettings(
        name=name,
        sink_type=common.type,
        sink=sink,
        config=config,
        events=tuple(sink.events if common.events is None else common.events),
        accounts=None if common.accounts is None else tuple(common.accounts),
        where=where,
        redact=tuple(common.redact),
        timeout_s=timeout_s,
        retry_s=retry_s,
        rate_per_s=rate_per_s,
        allow_private_network=common.allow_private_network,
    )


def _is_unicode(value: Any) -> bool:
    """Whether it can be written as UTF-8; other bytes of the environment come as lone surrogates."""
    texts = value if isinstance(value, list) else [value]
    return not any("\ud800" <= letter <= "\udfff" for text in texts if isinstance(text, str) for letter in text)


def _convert(table: dict[str, Any], struct: type, path: str, problems: list[str]) -> Any:
    """The table as that Struct, or None after noting every field that does not fit, not only the first."""
    before = len(problems)
    for field in msgspec.structs.fields(struct):
        if field.encode_name in table:
            try:
                msgspec.convert(table[field.encode_name], field.type)
            except msgspec.ValidationError as error:
                what, _, where = str(error).partition(" - at `$")
                problems.append(f"{path}.{field.encode_name}{where.rstrip('`')}: {what}")
        elif field.required:
            problems.append(f"{path}.{field.encode_name}: missing")
    if len(problems) > before:
        return None
    try:
        return msgspec.convert(table, struct)
    except msgspec.ValidationError as error:
        option = str(error).partition(": ")[0]
        problems.append(f"{path}.{error}" if option in table else f"{path}: {error}")
        return None


def _duration(value: Any, path: str, problems: list[str]) -> float:
    try:
        return parse_duration(str(value))
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return 1.0


def parse_rate(text: str) -> float:
    """How many a second, from `10/s`, `100/m` or `500/h`; raises ValueError with the form expected."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)/(s|m|h)", text)
    if not match or not float(match[1]):
        raise ValueError('not a rate; write a number and /s, /m or /h, as in "10/s"')
    return float(match[1]) / _UNITS[match[2]]


def _rate(text: str, path: str, problems: list[str]) -> float:
    try:
        return parse_rate(text) if text else 0.0
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return 0.0


def _condition(text: str, path: str, problems: list[str]) -> Condition | None:
    try:
        return Condition(text) if text else None
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return None


def _redis_url(environ: Mapping[str, str], problems: list[str]) -> str:
    url = environ.get("REDIS_URL", "")
    if not url:
        problems.append("REDIS_URL: missing; where the ledger is kept, as in redis://localhost:6379/0")
    elif is_sentinel_url(url):
        try:
            parse_sentinel_url(url)
        except ValueError as error:
            problems.append(f"REDIS_URL: {error}")
    elif url_scheme(url) not in ("redis", "rediss", "unix"):
        problems.append("REDIS_URL: expected redis://, rediss://, unix://, redis+sentinel:// or rediss+sentinel://")
    return url


def _port(environ: Mapping[str, str], problems: list[str]) -> int:
    text = environ.get("PORT") or "8000"
    if text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    problems.append(f"PORT: expected a number from 1 to 65535, not {text!r}")
    return 0
