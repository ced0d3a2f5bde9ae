"""The chaos suite itself: its plans, a short run of it, and that its verifier sees each promise broken."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from simulator.calls import event_type
from tests.chaos.evidence import SETTLED, Evidence
from tests.chaos.facts import (
    FILES,
    Arrival,
    CommandLine,
    Fact,
    Fault,
    Life,
    Post,
    Sample,
    Writer,
    read,
    write_json,
)
from tests.chaos.outside import Ports, Run
from tests.chaos.plan import MIN_FAULTS, Options, describe, make_plan
from tests.chaos.provider import IMPATIENCE, SILENCE
from tests.chaos.report import judge, table
from tests.chaos.soak import CALL_BYTES, SOAK, first_accepted, memory_does_not_grow, soak_options, trend
from tests.stack import KEYS, ROOT

# A worker is killed at full speed, then Redis is frozen for longer than an answer may take, and killed.
SHORT = Options(
    seed=18462,
    server="valkey",
    webhooks=200,
    seconds=9,
    faults=MIN_FAULTS,
    flaky="requests",
    lease_s=8,  # a busy machine needs half of it to start the process in which a suspect is done
    doubles=0.02,
)
COMMAND = ["--seed", "18462", "--server", "valkey", "--webhooks", "200", "--seconds", "9", "--kills", str(MIN_FAULTS)]
COMMAND += ["--flaky", "requests", "--lease", "8", "--doubles", "2"]


# Plans


def test_the_same_seed_is_the_same_plan_in_every_process() -> None:
    program = f"from tests.test_chaos import *; print(make_plan({SHORT!r}).digest)"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)

    assert other.stdout.strip() == make_plan(SHORT).digest
    assert make_plan(msgspec.structs.replace(SHORT, server="redis")).digest == make_plan(SHORT).digest
    assert make_plan(msgspec.structs.replace(SHORT, seed=7)).digest != make_plan(SHORT).digest


def test_a_plan_holds_every_kind_of_fault_and_as_many_facts_as_asked_for() -> None:
    plan = make_plan(SHORT)

    kinds = {f"{fault.kind} {fault.target.partition('-')[0]}" for fault in plan.breaks}
    assert kinds == {
        "kill worker", "kill service", "kill redis", "freeze worker", "freeze redis", "term worker",
        "flush redis", "reset redis", "fill redis", "demote redis",
    }  # fmt: skip
    assert sum(posting.expect == "event" for posting in plan.postings) == SHORT.webhooks
    calls = {posting.call_id for posting in plan.postings if posting.expect == "event"}
    over = {posting.call_id for posting in plan.postings if posting.tells_an_end}
    assert len(calls) / 2 < len(over) < len(calls)
    assert {posting.provider for posting in plan.postings} == {"retell", "cartesia", "ultravox"}
    assert {posting.expect for posting in plan.postings} == {"event", "nothing", "refused"}
    assert max(posting.copies for posting in plan.postings) > 1
    assert all(0 < posting.at_s <= SHORT.seconds for posting in plan.postings)
    for fault in plan.breaks:
        assert f"{fault.at_s:.2f} s  {fault.kind} {fault.target}" in describe(plan)


# A run


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a short run left behind."""
    directory = tmp_path_factory.mktemp("chaos")
    command = [sys.executable, "-m", "tests.chaos", *COMMAND, "--directory", str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            said, _ = running.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            running.terminate()  # so that it can end what it started
            said, _ = running.communicate()
    assert running.returncode == 0, said
    return directory


@pytest.mark.long
def test_every_promise_is_kept_while_everything_is_killed(facts: Path) -> None:
    text, good = table(facts)

    assert good, text
    assert text.count("  kept  ") == len(judge(Evidence(facts)))
    seen = Evidence(facts)
    assert seen.options == SHORT
    assert len(seen.faults) == SHORT.faults
    assert any(post.status == 503 or post.error for post in seen.posts), "nothing was in the way of any webhook"
    assert {call_id for _, call_id, _ in seen.over} == {one.subject for one in seen.arrivals if one.type == SETTLED}


# Promises broken


def change(directory: Path, kind: type[Fact], alter: Callable[[list[Fact]], list[Fact]]) -> None:
    """Write the facts of a kind anew."""
    lines = [msgspec.json.encode(fact) + b"\n" for fact in alter(read(directory, kind))]
    (directory / f"{FILES[kind]}.ndjson").write_bytes(b"".join(lines))


def one(kind: type[Fact], where: Callable[[Fact], bool], **changes: Any) -> Callable[[Path], None]:
    """Change one fact."""

    def alter(known: list[Fact]) -> list[Fact]:
        index = next(index for index, fact in enumerate(known) if where(fact))
        known[index] = msgspec.structs.replace(known[index], **changes)
        return known

    return lambda directory: change(directory, kind, alter)


def added(fact: msgspec.Struct) -> Callable[[Path], None]:
    return lambda directory: change(directory, type(fact), lambda known: [*known, fact])


def at_second(arrival: Arrival) -> bool:
    return arrival.sink == "second" and arrival.answer == 204


def settled_at_second(arrival: Arrival) -> bool:
    return at_second(arrival) and arrival.type == SETTLED


def lose_what_settled(sinks: tuple[str, ...]) -> Callable[[Path], None]:
    """One call's settled event never came to these sinks."""

    def alter(known: list[Arrival]) -> list[Arrival]:
        lost = next(filter(settled_at_second, known)).id
        return [arrival for arrival in known if arrival.id != lost or arrival.sink not in sinks]

    return lambda directory: change(directory, Arrival, alter)


def settle_twice(directory: Path) -> None:
    """Every sink is told once more, under another id."""

    def alter(known: list[Arrival]) -> list[Arrival]:
        first = next(filter(settled_at_second, known)).id
        again = [arrival for arrival in known if arrival.id == first]
        return known + [msgspec.structs.replace(arrival, id="evt_other", sequence=77) for arrival in again]

    change(directory, Arrival, alter)


def settle_a_call_that_goes_on(directory: Path) -> None:
    def alter(known: list[Arrival]) -> list[Arrival]:
        over = {key.call_id for key in Evidence(directory).over}
        last = max((arrival for arrival in known if arrival.subject not in over), key=lambda arrival: arrival.sequence)
        sinks = {arrival.sink: arrival for arrival in known if arrival.id == last.id}
        changes = {"id": "evt_other", "type": SETTLED, "event": None, "sequence": last.sequence + 1}
        return known + [msgspec.structs.replace(arrival, **changes) for arrival in sinks.values()]

    change(directory, Arrival, alter)


def lose_a_delivery(directory: Path) -> None:
    def alter(known: list[Arrival]) -> list[Arrival]:
        lost = next(filter(at_second, known)).id
        return [arrival for arrival in known if (arrival.sink, arrival.id) != ("second", lost)]

    change(directory, Arrival, alter)


def lose_an_event(directory: Path) -> None:
    """As if it had been answered 2xx and not stored."""

    def alter(known: list[Arrival]) -> list[Arrival]:
        lost = next(arrival.id for arrival in reversed(known) if arrival.type != SETTLED)
        return [arrival for arrival in known if arrival.id != lost]

    change(directory, Arrival, alter)


def deliver_again_without_a_cause(directory: Path) -> None:
    def alter(known: list[Arrival]) -> list[Arrival]:
        late = msgspec.structs.replace(next(filter(at_second, known)), at_s=900.0, until_s=900.1)
        return [*known, late, msgspec.structs.replace(late, at_s=950.0, until_s=950.1)]

    change(directory, Arrival, alter)


def deliver_everything_three_times(directory: Path) -> None:
    change(directory, Arrival, lambda known: [arrival for arrival in known for _ in range(3)])


def answer_while_redis_is_gone(directory: Path) -> None:
    seen = Evidence(directory)
    gone_s, back_s = max(seen.redis_gone, key=lambda gone: gone[1] - gone[0])
    number = next(posting.number for posting in seen.plan.postings if posting.expect == "event")
    took_s = (back_s - gone_s) / 4
    added(Post(posting=number, copy=1, attempt=99, sent_s=gone_s + took_s, took_s=took_s, status=204))(directory)


def forget_dead_letters(directory: Path) -> None:
    lines = (directory / "dead.out").read_text().splitlines(keepends=True)
    (directory / "dead.out").write_text("".join(lines[1:]))


def bury_an_event(directory: Path) -> None:
    with (directory / "dead.out").open("a") as file:
        file.write('{"event": "evt_other", "sink": "first"}\n')


def leave_work_open(lane: str) -> Callable[[Path], None]:
    def alter(directory: Path) -> None:
        text = (directory / "metrics.txt").read_text()
        (directory / "metrics.txt").write_text(
            text.replace(f'open_work{{lane="{lane}"}} 0.0', f'open_work{{lane="{lane}"}} 1.0')
        )

    return alter


def say_nothing_of_settling(directory: Path) -> None:
    text = (directory / "metrics.txt").read_text()
    (directory / "metrics.txt").write_text(text.replace('open_work{lane="settle"}', 'open_work{lane="other"}'))


def log(text: str) -> Callable[[Path], None]:
    def alter(directory: Path) -> None:
        with (directory / "worker-1.log").open("a") as file:
            file.write(text)

    return alter


def log_what_was_said(directory: Path) -> None:
    log(f"said: {make_plan(SHORT).marker}")(directory)


def keep_a_call_waiting(directory: Path) -> None:
    def alter(known: list[Arrival]) -> list[Arrival]:
        chosen = next(filter(at_second, known)).id
        return [
            msgspec.structs.replace(arrival, at_s=arrival.at_s + 200, until_s=arrival.until_s + 200)
            if (arrival.sink, arrival.id) == ("second", chosen)
            else arrival
            for arrival in known
        ]

    change(directory, Arrival, alter)


@pytest.mark.parametrize(("promise", "breach"), [
    ("0", one(Fault, lambda _: True, number=99)),
    ("1", lose_a_delivery),
    ("1", lose_an_event),
    ("1", one(Arrival, at_second, complete=False)),
    ("2", one(Arrival, at_second, id="evt_other")),
    ("3", deliver_again_without_a_cause),
    ("3", deliver_everything_three_times),
    ("4", forget_dead_letters),
    ("4", bury_an_event),
    ("5", one(Arrival, at_second, sequence=77)),
    ("6", leave_work_open("deliver:slow")),
    ("6", leave_work_open("settle")),
    ("6", say_nothing_of_settling),
    ("7", answer_while_redis_is_gone),
    ("7", one(Post, lambda post: post.status == 204, took_s=5.5)),
    ("7", one(Post, lambda post: post.status == 204, status=500)),
    ("7", one(Post, lambda post: post.status == 401, status=204)),
    ("7", one(Post, lambda post: post.status == 503, error=IMPATIENCE)),
    ("7", one(Post, lambda post: post.status is None, error=SILENCE)),
    ("8", keep_a_call_waiting),
    ("9", log("from +15550100123")),
    ("9", log(f"Bearer {KEYS['RETELL_KEY']}")),
    ("9", log_what_was_said),
    ("9", added(CommandLine(process="worker-1", words=f"python -m workers {KEYS['ULTRAVOX_SECRET']}"))),
    ("10", added(Sample(process="worker-1", pid=1, at_s=1.0, bytes=600 * 1024 * 1024))),
    ("11", one(Arrival, at_second, digest="another")),
    ("11", one(Arrival, at_second, signed=False)),
    ("12", added(Life(process="worker-2", pid=1, at_s=1.0, what="ended", status=1))),
    ("12", one(Life, lambda life: life.asked == "term", status=1)),
    ("13", lose_what_settled(("second",))),
    ("13", lose_what_settled(SHORT.sinks)),
    ("13", one(Arrival, settled_at_second, id="evt_other")),
    ("13", settle_twice),
    ("13", settle_a_call_that_goes_on),
    ("13", one(Arrival, settled_at_second, event="call_settled")),
    ("13", one(Arrival, lambda arrival: at_second(arrival) and arrival.type != SETTLED, event=None)),
    ("5", one(Arrival, settled_at_second, sequence=77)),
    ("1", one(Arrival, settled_at_second, complete=False)),
    ("11", one(Arrival, settled_at_second, digest="another")),
])  # fmt: skip
@pytest.mark.long
def test_a_broken_promise_is_seen_and_named(
    facts: Path, tmp_path: Path, promise: str, breach: Callable[[Path], None]
) -> None:
    directory = tmp_path / "facts"
    shutil.copytree(facts, directory, ignore=shutil.ignore_patterns("data"))
    breach(directory)

    broken = {verdict.promise.partition(" ")[0] for verdict in judge(Evidence(directory)) if verdict.broken}
    assert promise in broken


# Soaks


def write_soak(
    directory: Path,
    *,
    minutes: float = 10,
    rss: int = 0,
    used: int = 0,
    keys: int = 0,
    late_s: float = 0.0,
    rate: float = 0.3,
) -> None:
    """The facts of a soak in which every call is remembered, and something else grows by so much a second."""
    options = soak_options(seed=3, server="redis", minutes=minutes, rate=rate, faults=0, retention_s=60, workers=1)
    plan = make_plan(options)
    run = Run(options=options, plan=plan.digest, began=0.0, ports=Ports(main=1, flaky=2))
    write_json(directory / "run.json", run)
    facts = Writer(directory, Sample, Post, Arrival)
    begins: dict[str, float] = {}
    for posting in plan.postings:
        if posting.expect == "event":
            begins.setdefault(posting.call_id, posting.at_s)
    for second in range(0, round(options.seconds), 2):
        facts.write(Sample(process="worker-1", pid=1, at_s=second, bytes=80_000_000 + rss * second))
        calls = sum(at_s <= second for at_s in begins.values())
        size = 20_000_000 + used * second + CALL_BYTES * calls
        facts.write(Sample(process="redis", pid=2, at_s=second, bytes=size, keys=1000 + keys * second + calls))
    for posting in plan.postings:
        at_s = posting.at_s
        facts.write(Post(posting=posting.number, copy=1, attempt=1, sent_s=at_s, took_s=0.0, status=204))
        for sink in ("first", "second"):
            facts.write(
                Arrival(
                    sink=sink,
                    id=f"evt_{posting.number}",
                    at_s=at_s + 0.02 + late_s * at_s,
                    until_s=at_s + 0.02 + late_s * at_s,
                    answer=204,
                    signed=True,
                    digest="",
                    source=f"/{posting.provider}/{posting.account}",
                    subject=posting.call_id,
                    type=event_type(posting.provider, posting.event),
                    event=posting.event,
                    sequence=1,
                    complete=True,
                )
            )
    facts.close()


def soak_breaches(directory: Path) -> list[str]:
    return [breach for check in SOAK for breach in check(Evidence(directory)).broken]


def test_a_soak_that_stays_as_it_was_is_well(tmp_path: Path) -> None:
    write_soak(tmp_path)

    assert soak_breaches(tmp_path) == []
    assert len(trend(Evidence(tmp_path)).splitlines()) == 12


@pytest.mark.long
def test_a_soak_may_remember_its_calls_and_keep_no_more_of_them(tmp_path: Path) -> None:
    write_soak(tmp_path, rate=6)
    kept = memory_does_not_grow(Evidence(tmp_path)).broken
    begun = first_accepted(Evidence(tmp_path))

    def keep_one_more(known: list[Sample]) -> list[Sample]:
        return [
            msgspec.structs.replace(sample, keys=sample.keys + sum(at_s <= sample.at_s for at_s in begun))
            if sample.keys
            else sample
            for sample in known
        ]

    change(tmp_path, Sample, keep_one_more)

    assert kept == []
    assert "redis keys grew" in "".join(memory_does_not_grow(Evidence(tmp_path)).broken)


@pytest.mark.parametrize(("growth", "what"), [
    ({"rss": 100_000}, "worker-1 grew"),
    ({"used": 50_000}, "redis grew"),
    ({"keys": 4}, "redis keys grew"),
    ({"late_s": 0.001}, "p50 went"),
    ({"minutes": 3}, "too short"),
])  # fmt: skip
def test_a_soak_that_creeps_is_seen(tmp_path: Path, growth: dict[str, Any], what: str) -> None:
    write_soak(tmp_path, **growth)

    assert what in "\n".join(soak_breaches(tmp_path))
