"""The facts of a run, read back from its files and put in an order in which promises can be checked."""

import bisect
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.chaos.facts import (
    Arrival,
    Command,
    CommandLine,
    Fact,
    Fault,
    Fetch,
    Life,
    Post,
    Pulse,
    Sample,
    read,
)
from tests.chaos.outside import Run
from tests.chaos.plan import Options, Plan, Posting, make_plan

# What may cost a repeated attempt: what ends or stops a worker, or keeps Redis from taking its word.
COSTLY = {("kill", "worker"), ("freeze", "worker")}
COSTLY |= {(kind, "redis") for kind in ("kill", "freeze", "reset", "fill", "demote")}


SETTLED = "call.settled"


class Key(NamedTuple):
    """What a provider calls one kind of event of one call. Several facts may share it (a second analysis).

    aftercall's own event has its type in place of the provider's word.
    """

    source: str
    call_id: str
    event: str | None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one promise was kept."""

    promise: str
    measured: str
    broken: list[str] = []  # each breach in a line, with its ids


class Evidence:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.run = msgspec.json.decode((directory / "run.json").read_bytes(), type=Run)

    @property
    def options(self) -> Options:
        return self.run.options

    @cached_property
    def plan(self) -> Plan:
        plan = make_plan(self.run.options)
        if plan.digest != self.run.plan:
            raise SystemExit(f"the plan is {plan.digest} now and was {self.run.plan}: verify with the code that ran it")
        return plan

    def facts(self, kind: type[Fact]) -> list[Fact]:
        return read(self.directory, kind)

    @cached_property
    def posts(self) -> list[Post]:
        return self.facts(Post)

    @cached_property
    def arrivals(self) -> list[Arrival]:
        return sorted(self.facts(Arrival), key=lambda arrival: arrival.at_s)

    @cached_property
    def faults(self) -> list[Fault]:
        return sorted(self.facts(Fault), key=lambda fault: fault.at_s)

    @cached_property
    def _fetches(self) -> dict[str, list[Fetch]]:
        found: dict[str, list[Fetch]] = defaultdict(list)
        for fetch in self.facts(Fetch):
            found[fetch.call_id].append(fetch)
        return dict(found)

    def fetches_of(self, call_id: str) -> list[Fetch]:
        return self._fetches.get(call_id, [])

    @cached_property
    def lives(self) -> list[Life]:
        return self.facts(Life)

    @cached_property
    def samples(self) -> list[Sample]:
        return self.facts(Sample)

    @cached_property
    def cmdlines(self) -> list[CommandLine]:
        return self.facts(CommandLine)

    @cached_property
    def commands(self) -> dict[str, Command]:
        return {command.name: command for command in self.facts(Command)}

    def rows(self, name: str) -> list[dict[str, Any]]:
        """What a command of the operator's printed with --json."""
        path = self.directory / f"{name}.out"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @cached_property
    def open_work(self) -> dict[str, float] | None:
        path = self.directory / "metrics.txt"
        if not path.exists():
            return None
        found = re.findall(r'^aftercall_open_work\{lane="([^"]+)"\} (\S+)', path.read_text(), re.MULTILINE)
        return {lane: float(count) for lane, count in found}

    # What was posted

    @cached_property
    def accepted(self) -> dict[int, float]:
        """Posting → when it was first answered 2xx."""
        first: dict[int, float] = {}
        for post in self.posts:
            if post.status is not None and 200 <= post.status < 300:
                at_s = post.sent_s + post.took_s
                first[post.posting] = min(at_s, first.get(post.posting, at_s))
        return first

    @cached_property
    def facts_by_key(self) -> dict[Key, list[Posting]]:
        """The facts that must come out."""
        found: dict[Key, list[Posting]] = defaultdict(list)
        for posting in self.plan.postings:
            if posting.expect == "event":
                found[key_of(posting)].append(posting)
        return dict(found)

    @cached_property
    def accepted_by_key(self) -> dict[Key, float]:
        """When the last of a key's facts was accepted."""
        return {
            key: max(self.accepted[posting.number] for posting in postings)
            for key, postings in self.facts_by_key.items()
            if all(posting.number in self.accepted for posting in postings)
        }

    @cached_property
    def over(self) -> set[Key]:
        """What aftercall must make itself: the settled event of each call of which an end was accepted."""
        return {
            key_of(posting)._replace(event=SETTLED)
            for posting in self.plan.postings
            if posting.tells_an_end and posting.number in self.accepted
        }

    # What arrived

    @cached_property
    def delivered(self) -> list[Arrival]:
        """The attempts that a sink answered 2xx."""
        return [arrival for arrival in self.arrivals if 200 <= arrival.answer < 300]

    @cached_property
    def by_delivery(self) -> dict[tuple[str, str], list[Arrival]]:
        """(sink, id) → its attempts, in their order."""
        found: dict[tuple[str, str], list[Arrival]] = defaultdict(list)
        for arrival in self.arrivals:
            found[arrival.sink, arrival.id].append(arrival)
        return dict(found)

    def ids_at(self, sink: str) -> dict[Key, set[str]]:
        """Key → the ids delivered to the sink."""
        found: dict[Key, set[str]] = defaultdict(set)
        for arrival in self.delivered:
            if arrival.sink == sink:
                found[key_of_arrival(arrival)].add(arrival.id)
        return dict(found)

    @cached_property
    def ids(self) -> set[str]:
        """Every id that was ever seen at any sink."""
        return {arrival.id for arrival in self.arrivals}

    # What went wrong

    @cached_property
    def costly(self) -> list[Fault]:
        return [fault for fault in self.faults if (fault.kind, fault.target.partition("-")[0]) in COSTLY]

    @cached_property
    def troubles(self) -> list[Fault]:
        """What can hold work up: all that was done to workers and to Redis, but for what costs it nothing."""
        return [fault for fault in self.faults if not fault.target.startswith("service") and fault.kind != "flush"]

    @cached_property
    def redis_gone(self) -> list[tuple[float, float]]:
        """When Redis certainly did nothing."""
        return [
            (fault.gone_s, fault.back_s)
            for fault in self.faults
            if fault.target == "redis" and fault.kind in ("kill", "freeze")
        ]

    @cached_property
    def _late(self) -> tuple[list[float], list[Pulse]]:
        pulses = sorted(self.facts(Pulse), key=lambda pulse: pulse.at_s)
        return [pulse.at_s for pulse in pulses], pulses

    def lateness(self, from_s: float, until_s: float) -> float:
        """How late this machine was at worst in that time."""
        times, pulses = self._late
        some = pulses[bisect.bisect_left(times, from_s - 12) : bisect.bisect_right(times, until_s)]
        return max((pulse.late_s for pulse in some if pulse.at_s + pulse.late_s >= from_s), default=0.0)


def key_of(posting: Posting) -> Key:
    return Key(f"/{posting.provider}/{posting.account}", posting.call_id, posting.event)


def key_of_arrival(arrival: Arrival) -> Key:
    return Key(arrival.source, arrival.subject, SETTLED if arrival.type == SETTLED else arrival.event)


def share(values: Iterable[float], part: float) -> float:
    """A percentile, 0.5 being the median; 0 for none."""
    ordered: Sequence[float] = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


def describe(key: Key) -> str:
    return f"{key.event} of {key.source} {key.call_id}"
