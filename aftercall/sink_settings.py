"""The tables of sinks and of clients: which options they have, and what is wrong with them."""

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta

from aftercall import options
from aftercall.errors import PluginError
from aftercall.event import CallEvent, EventType
from aftercall.plugins import sink_class
from aftercall.routing import REDACTIONS, Client, Condition, asks_for, check_redaction, is_of
from aftercall.sinks.base import Format, Sink, SinkConfig

DEFAULT_RETRY = ("5s", "30s", "5m", "30m", "2h", "8h", "24h")
MAX_TIMEOUT_S = 30.0  # an attempt must end well within the worker's lease

EVENTS = ("*", *(word for word in get_args(EventType) if word != "call.unknown"))  # that one comes only with "*"


class SinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One `[sinks.<name>]` table: the options every sink has, and the sink's own in `config`."""

    name: str
    sink_type: str  # as it stands in the file
    sink: type[Sink]
    config: SinkConfig
    events: tuple[str, ...]
    accounts: tuple[str, ...] | None = None  # None: all
    agents: tuple[str, ...] | None = None
    numbers: tuple[str, ...] | None = None
    clients: tuple[Client, ...] | None = None
    where: Condition | None = None  # None: always
    redact: tuple[str, ...] = ()
    format: Format = "event"
    recording_from: str | None = None  # the sink whose copy of a recording takes the place of the provider's
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
            if ours and (self.erases or (self.name in told and asks_for(self.events, event) and self.format != "raw")):
                return True
        if self.format == "raw" and event.data.via in ("settle", "erase"):
            return False  # aftercall's own: there is no body of the provider's
        return (
            asks_for(self.events, event)
            and is_of(event, self)
            and (self.clients is None or any(client.has(event) for client in self.clients))
            and (self.where is None or self.where.holds(event))
        )


class CommonOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options that every sink has, as they stand in the file."""

    type: Annotated[str, Meta(description='a built-in sink, an installed one, or "module:Class"')]
    events: Annotated[
        list[str] | None, Meta(description='which events; "*" is everything; default: the sink type\'s own')
    ] = None
    accounts: Annotated[list[str] | None, Meta(description="of which accounts; default: all")] = None
    agents: Annotated[list[str] | None, Meta(description="of which agents, by id or name; default: all")] = None
    numbers: Annotated[
        list[str] | None,
        Meta(description="of calls from or to these numbers, as the provider writes them; default: all"),
    ] = None
    clients: Annotated[
        list[str] | None, Meta(description="of which clients, as [clients.<name>] describes them; default: all")
    ] = None
    where: Annotated[str, Meta(description="a CEL expression over call, tags and event that must be true")] = ""
    redact: Annotated[
        list[str], Meta(description=f"what never leaves: {', '.join(REDACTIONS)}, or paths as call.metadata.card")
    ] = []
    format: Annotated[
        Format, Meta(description="event: ours; raw: the provider's own webhook body, where the sink can pass it on")
    ] = "event"
    recording_from: Annotated[
        str | None, Meta(description="an s3 sink: recording.url then leads to the copy in its archive")
    ] = None
    rate: Annotated[str, Meta(description="how many at most, as 10/s, 100/m or 500/h; default: no limit")] = ""
    timeout: Annotated[str, Meta(description="how long an attempt may take, at most 30s")] = "10s"
    retry: Annotated[
        tuple[str, ...], Meta(description="waits between attempts, each with jitter; then it is a dead letter")
    ] = DEFAULT_RETRY
    allow_private_network: Annotated[
        bool, Meta(description="whether its HTTP requests may reach private, loopback and link-local addresses")
    ] = False


_COMMON = tuple(CommonOptions.__struct_fields__)
_MAY_BE_OWN = ("format",)  # as the console's: it has no other use for that word, since it is not `raw`


def shadowed(sink: type[Sink]) -> str | None:
    """An option of the sink's own that takes the place of one that every sink has."""
    own = sink.Config.__struct_encode_fields__
    return next((name for name in own if name in _COMMON and name not in _MAY_BE_OWN), None)


def sink_settings(
    name: str,
    table: dict[str, Any],
    accounts: Iterable[str],
    client_names: Iterable[str],
    clients: Mapping[str, Client],
    problems: list[str],
) -> SinkSettings | None:
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
    if taken := shadowed(sink):
        problems.append(f"{path}.type: its Config has the option {taken}, which every sink has; give it another name")
        return None
    fields = options.table(table, path, (*_COMMON, *own), problems)
    # An option of the sink's own comes first: the console's `format` is not the one that every sink has.
    common = options.convert(
        {key: fields[key] for key in fields if key in _COMMON and key not in own}, CommonOptions, path, problems
    )
    config = options.convert({key: fields[key] for key in fields if key in own}, sink.Config, path, problems)
    if common is None or config is None:
        return None
    _check_words(path, "events", common.events, EVENTS, problems)
    _check_words(path, "accounts", common.accounts, accounts, problems)
    _check_words(path, "clients", common.clients, client_names, problems)
    _check_redactions(path, common.redact, problems)
    events = tuple(sink.events if common.events is None else common.events)
    if common.format == "raw":
        _check_raw(path, sink, events, common, problems)
    timeout_s = options.duration(common.timeout, f"{path}.timeout", problems)
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        problems.append(f"{path}.timeout: expected more than 0 and at most {MAX_TIMEOUT_S:.0f}s")
    retry_s = tuple(
        options.duration(wait, f"{path}.retry[{index}]", problems) for index, wait in enumerate(common.retry)
    )
    where = options.condition(common.where, f"{path}.where", problems)
    rate_per_s = options.rate(common.rate, f"{path}.rate", problems)
    if len(problems) > before:
        return None
    return SinkSettings(
        name=name,
        sink_type=common.type,
        sink=sink,
        config=config,
        events=events,
        accounts=_tuple(common.accounts),
        agents=_tuple(common.agents),
        numbers=_tuple(common.numbers),
        clients=None if common.clients is None else tuple(clients[name] for name in common.clients if name in clients),
        where=where,
        redact=tuple(common.redact),
        format=common.format,
        recording_from=common.recording_from,
        timeout_s=timeout_s,
        retry_s=retry_s,
        rate_per_s=rate_per_s,
        allow_private_network=common.allow_private_network,
    )


class ClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A `[clients.<name>]` table as it stands in the file. A call is the client's when all that is given holds."""

    accounts: Annotated[list[str] | None, Meta(description="the call came in by one of these accounts")] = None
    agents: Annotated[list[str] | None, Meta(description="one of these agents spoke, by id or name")] = None
    numbers: Annotated[list[str] | None, Meta(description="it was from or to one of these numbers")] = None
    where: Annotated[str, Meta(description="a CEL expression over call, tags and event that must be true")] = ""


def client_of(name: str, table: dict[str, Any], accounts: Iterable[str], problems: list[str]) -> Client | None:
    path, before = f"clients.{name}", len(problems)
    fields = options.table(table, path, ClientOptions.__struct_fields__, problems)
    known = {key: value for key, value in fields.items() if key in ClientOptions.__struct_fields__}
    given = options.convert(known, ClientOptions, path, problems)
    if given is None:
        return None
    asks = given.where or (given.accounts, given.agents, given.numbers) != (None, None, None)
    if not asks and len(problems) == before:  # it would have every call, as with `where = ""`
        problems.append(f"{path}: say which calls are its own, with accounts, agents, numbers or where")
    _check_words(path, "accounts", given.accounts, accounts, problems)
    where = options.condition(given.where, f"{path}.where", problems)
    if len(problems) > before:
        return None
    return Client(
        name=name,
        accounts=_tuple(given.accounts),
        agents=_tuple(given.agents),
        numbers=_tuple(given.numbers),
        where=where,
    )


def archive_problems(sinks: Mapping[str, SinkSettings], tables: Any) -> list[str]:
    """What is wrong with the sinks that others take their recordings from."""
    problems = []
    archives = [name for name, sink in sinks.items() if hasattr(sink.sink, "archived_recording")]
    for name, sink in sinks.items():
        path, archive = f"sinks.{name}.recording_from", sink.recording_from
        if archive and "recording" in sink.redact:  # deliveries would wait for what they then leave out
            problems.append(f"{path}: redact takes the recording out; leave out one of the two")
        if archive is None or (archive in archives and archive != name):
            continue
        if archive in sinks:
            problems.append(f'{path}: "{archive}" keeps no recordings; name an s3 sink')
        elif archive not in (tables or {}):  # if it is there, what is wrong with it is said already
            problems.append(options.unknown(path, f'sink "{archive}"', archive, archives))
    return problems


def _check_words(path: str, key: str, words: Iterable[str] | None, known: Iterable[str], problems: list[str]) -> None:
    problems += [
        options.unknown(f"{path}.{key}", f'word "{word}"', word, known) for word in words or () if word not in known
    ]


def _check_redactions(path: str, words: Iterable[str], problems: list[str]) -> None:
    for word in words:
        if word not in REDACTIONS and "." not in word:
            problems.append(options.unknown(f"{path}.redact", f'word "{word}"', word, REDACTIONS))
        elif word not in REDACTIONS:
            try:
                check_redaction(word)
            except ValueError as error:
                problems.append(f"{path}.redact: {error}")


def _check_raw(
    path: str, sink: type[Sink], events: tuple[str, ...], common: CommonOptions, problems: list[str]
) -> None:
    if not sink.raw:
        problems.append(f'{path}.format: {common.type} makes a message of its own, and cannot pass "raw" bodies on')
    if {*events} <= {"call.settled", "call.erased"}:
        problems.append(
            f"{path}.events: aftercall makes {', '.join(events)} itself, so there is nothing raw to send; name what the"
            ' provider tells, as ["call.ended"]'
        )
    problems += [
        f'{path}.{key}: has no effect on a provider\'s own body; leave it out, or format = "raw"'
        for key, value in (("redact", common.redact), ("recording_from", common.recording_from))
        if value
    ]


def _tuple(words: list[str] | None) -> tuple[str, ...] | None:
    return None if words is None else tuple(words)
