"""Configuration: a TOML file or the environment, checked whole, frozen. The only reader of `os.environ`.

`load()` returns `Settings` or raises `ConfigurationError` with every problem at once, each with the path of its key.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from aftercall import options
from aftercall.errors import ConfigurationError, PluginError
from aftercall.event import CallEvent
from aftercall.plugins import provider_class
from aftercall.providers.base import Account
from aftercall.routing import Client
from aftercall.sentinel import is_sentinel_url, parse_sentinel_url
from aftercall.sink_settings import SinkSettings, archive_problems, client_of, sink_settings
from aftercall.sinks.base import url_scheme

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

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    redis_url: str
    accounts: dict[str, Account]
    sinks: dict[str, SinkSettings]
    clients: dict[str, Client] = {}
    retention_s: float = 7 * 86400.0
    settle_after_s: float = 600.0
    host: str = "0.0.0.0"
    port: int = 8000

    def tags(self, event: CallEvent) -> dict[str, str]:
        """The tags of an event: its account's, and the name of the first client that has the call."""
        account = self.accounts.get(event.data.call.account)
        tags = account.tags if account else {}
        event = msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, tags=tags))  # as sinks see it
        client = next((client.name for client in self.clients.values() if client.has(event)), None)
        return ({"client": client} if client else {}) | tags

    def __repr__(self) -> str:
        return f"Settings(accounts={list(self.accounts)}, sinks={list(self.sinks)})"  # never keys or passwords


def load(
    environ: Mapping[str, str] = os.environ, directory: Path | None = None, *, need_redis: bool = True
) -> Settings:
    """The settings of this process. `environ` and `directory` stand in for the real ones in tests.

    With `need_redis=False`, for what works without the ledger, `REDIS_URL` is not looked at and `redis_url` is empty;
    then there need be no account either.
    """
    problems: list[str] = []
    tables = _tables(environ, directory or Path.cwd(), problems)
    accounts = {
        name: account
        for name, table in _named_tables(tables, "accounts", problems)
        if (account := _account(name, table, problems))
    }
    account_names = tables["accounts"] if isinstance(tables.get("accounts"), dict) else {}
    clients = {
        name: client
        for name, table in _named_tables(tables, "clients", problems)
        if (client := client_of(name, table, account_names, problems))
    }
    client_names = tables["clients"] if isinstance(tables.get("clients"), dict) else {}
    sinks = {
        name: sink
        for name, table in _named_tables(tables, "sinks", problems)
        if (sink := sink_settings(name, table, account_names, client_names, clients, problems))
    }
    problems += archive_problems(sinks, tables.get("sinks"))
    retention = options.table(tables.get("retention", {}), "retention", ("events", "settle_after"), problems)
    retention_s = options.duration(retention.get("events", "7d"), "retention.events", problems)
    if retention_s < 1:  # Redis would forget at once what it has just taken
        problems.append("retention.events: at least 1s")
    settle_after_s = options.duration(retention.get("settle_after", "10m"), "retention.settle_after", problems)
    if not account_names and need_redis and not problems:
        without_file = (
            ", or set RETELL_API_KEY, or CARTESIA_API_KEY and CARTESIA_WEBHOOK_SECRET, or ULTRAVOX_API_KEY and"
            " ULTRAVOX_WEBHOOK_SECRET"
        )
        instead = "" if _file(environ, directory or Path.cwd()) else without_file
        problems.append(f"accounts: none is configured; write an [accounts.<name>] table{instead}")
    settings = Settings(
        redis_url=_redis_url(environ, problems) if need_redis else "",
        accounts=accounts,
        sinks=sinks,
        clients=clients,
        retention_s=retention_s,
        settle_after_s=settle_after_s,
        host=environ.get("HOST") or "0.0.0.0",
        port=_port(environ, problems),
    )
    if problems:
        raise ConfigurationError(problems)
    return settings


def _tables(environ: Mapping[str, str], directory: Path, problems: list[str]) -> dict[str, Any]:
    """The whole configuration as plain tables, from the file if there is one, else from the environment."""
    path = _file(environ, directory)
    if path is None:
        return _from_environment(environ, problems)
    try:
        tables = tomllib.loads(path.read_text("utf-8-sig"))  # an editor of Windows may put a mark before it
    except OSError as error:
        problems.append(f"AFTERCALL_CONFIG: cannot read {path}: {error.strerror}")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{path.name}: not valid TOML: {error}")
        return {}
    tables = options.table(tables, "", ("accounts", "clients", "sinks", "retention"), problems)
    return {key: _substitute(value, key, environ, problems) for key, value in tables.items()}


def _file(environ: Mapping[str, str], directory: Path) -> Path | None:
    """The file that is named, or the usual one if it is there."""
    named = environ.get("AFTERCALL_CONFIG")
    path = directory / (named or DEFAULT_FILE)
    return path if named or path.exists() else None


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
    names = _VARIABLE.findall(value)
    problems += [f"{path}: ${{{name}}} is not set in the environment" for name in names if not environ.get(name)]
    odd = [name for name in names if not _is_unicode(environ.get(name, ""))]
    problems += [f"{path}: ${{{name}}} is not UTF-8 text" for name in odd]
    return _VARIABLE.sub(lambda match: "" if match[1] in odd else environ.get(match[1], ""), value)


def _named_tables(tables: dict[str, Any], kind: str, problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    found = tables.get(kind, {})
    if not isinstance(found, dict):
        problems.append(f"{kind}: expected tables, as in [{kind}.<name>]")
        return []
    for name, table in found.items():
        if not NAME.fullmatch(name):
            problems.append(f"{kind}.{name}: a name is 1 to 64 letters, digits, _ and -")
        elif not isinstance(table, dict):
            problems.append(f"{kind}.{name}: expected a table")
    return [(name, table) for name, table in found.items() if isinstance(table, dict)]


def _account(name: str, table: dict[str, Any], problems: list[str]) -> Account | None:
    path, before = f"accounts.{name}", len(problems)
    keys = ("provider", "api_key", "webhook_secrets", "base_url", "tags")
    fields = dict(options.table(table, path, keys, problems))
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
    account = options.convert(
        {"name": name} | {key: fields[key] for key in keys if key in fields}, Account, path, problems
    )
    if account is not None and account.base_url and url_scheme(account.base_url) not in ("http", "https"):
        problems.append(f"{path}.base_url: expected an http:// or https:// URL")
    return account if len(problems) == before else None


def _is_unicode(value: Any) -> bool:
    """Whether it can be written as UTF-8; other bytes of the environment come as lone surrogates."""
    texts = value if isinstance(value, list) else [value]
    return not any("\ud800" <= letter <= "\udfff" for text in texts if isinstance(text, str) for letter in text)


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
