"""From a name in the configuration to a class: built-ins, installed entry points, `module:Class`.

Built-ins come through the same door as everyone else's; they are only listed here instead of in package metadata.
"""

import difflib
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from aftercall.errors import PluginError
from aftercall.providers.base import Provider
from aftercall.sink_checks import flaw
from aftercall.sinks.base import Sink

PROVIDERS = {
    "retell": "aftercall.providers.retell:Retell",
    "cartesia": "aftercall.providers.cartesia:Cartesia",
    "ultravox": "aftercall.providers.ultravox:Ultravox",
}
SINKS = {
    "apprise": "aftercall.sinks.apprise:Apprise",
    "console": "aftercall.sinks.console:Console",
    "file": "aftercall.sinks.file:File",
    "postgres": "aftercall.sinks.postgres:Postgres",
    "kafka": "aftercall.sinks.kafka:Kafka",
    "nats": "aftercall.sinks.nats:Nats",
    "rabbitmq": "aftercall.sinks.rabbitmq:RabbitMQ",
    "google_sheets": "aftercall.sinks.google_sheets:GoogleSheets",
    "hubspot": "aftercall.sinks.hubspot:HubSpot",
    "email": "aftercall.sinks.email:Email",
    "langfuse": "aftercall.sinks.langfuse:Langfuse",
    "otel": "aftercall.sinks.otel:Otel",
    "discord": "aftercall.sinks.discord:Discord",
    "redis_stream": "aftercall.sinks.redis_stream:RedisStream",
    "s3": "aftercall.sinks.s3:S3",
    "slack": "aftercall.sinks.slack:Slack",
    "sns": "aftercall.sinks.sns:Sns",
    "sqs": "aftercall.sinks.sqs:Sqs",
    "slack_bot": "aftercall.sinks.slack_bot:SlackBot",
    "teams": "aftercall.sinks.teams:Teams",
    "webhook": "aftercall.sinks.webhook:Webhook",
}
GROUPS = {"provider": "aftercall.providers", "sink": "aftercall.sinks"}


def provider_class(name: str) -> type[Provider]:
    """The provider of that name; raises `PluginError` with what is there instead."""
    return cast(type[Provider], _load(name, PROVIDERS, "provider", Provider))


def sink_class(name: str) -> type[Sink]:
    """The sink type of that name; raises `PluginError` with what is there instead."""
    loaded = cast(type[Sink], _load(name, SINKS, "sink", Sink))
    if wrong := flaw(loaded):
        raise PluginError(f'sink "{name}": {wrong}')
    return loaded


def installed_plugins(kind: str) -> dict[str, str]:
    """The names and targets of that kind ("provider" or "sink") in installed packages' entry points."""
    return _entry_points(GROUPS[kind], tuple(sys.path))


@cache  # all packages' metadata are read for it: some 20 ms, for each sink of a configuration
def _entry_points(group: str, _path: tuple[str, ...]) -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=group)}


def _load(name: str, builtins: dict[str, str], kind: str, base: type) -> type:
    target = name if ":" in name else builtins.get(name) or installed_plugins(kind).get(name)
    if target is None:
        known = sorted({*builtins, *installed_plugins(kind)})
        close = difflib.get_close_matches(name, known, n=1)
        hint = f'did you mean "{close[0]}"?' if close else f'there are {", ".join(known)}, or write "module:Class"'
        raise PluginError(f'no {kind} "{name}"; {hint}')
    if target.startswith(".") or not EntryPoint.pattern.match(target):
        raise PluginError(f'no {kind} "{name}"; write "module:Class", as in "pager:Pager" for the class in pager.py')
    try:
        loaded = EntryPoint(name=name, value=target, group=GROUPS[kind]).load()
    except ModuleNotFoundError as error:
        remedy = (
            f"pip install 'aftercall[{name.replace('_', '-')}]'" if name in builtins else "is its package installed?"
        )
        raise PluginError(f'{kind} "{name}" needs the module {error.name}: {remedy}') from None
    except Exception as error:  # a foreign module may raise anything while it is imported
        why = f"{type(error).__name__}: {error}"
        raise PluginError(f'{kind} "{name}" cannot be loaded from {target}: {why}') from None
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise PluginError(f'{kind} "{name}": {target} is not a subclass of {base.__module__}.{base.__name__}')
    if missing := getattr(loaded, "__abstractmethods__", None):
        raise PluginError(f'{kind} "{name}": {target} does not define {", ".join(sorted(missing))}')
    return loaded
