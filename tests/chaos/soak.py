"""Steady load for minutes: whether memory, keys or latency creep. What expires must make room for what comes."""

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from tests.chaos.conduct import first_deliveries
from tests.chaos.evidence import Evidence, Key, Verdict, share
from tests.chaos.facts import Sample
from tests.chaos.plan import HEALTHY, Options

PARTS = 10
SWEEP_S = 75.0  # after its retention an event may stand in a list until the next sweep, a minute later at most
# From the first third after the warm-up to the last: so much may a median grow, and so many bytes or keys besides.
GROWTH = 1.1
FREE_RSS, FREE_USED, FREE_KEYS = 16_000_000, 8_000_000, 300
# A call is remembered for 35 days and more (`Lifecycle.call_memory_s`), so that a list which reaches far back finds
# nothing twice: a hash, and a member of its account's sorted set. No soak sees that end. So for each call that was
# accepted until then, these are subtracted from Redis' keys and memory; what else grows is a breach.
CALL_KEYS, CALL_BYTES = 1, 650  # measured: 500 of hash, 100 of member, 30 of the key's expiry
# Latency is more of this machine's than of aftercall's: only a drift that nobody can miss is one.
DRIFT = ((0.5, 1.3, 0.05), (0.99, 2.0, 1.0))  # percentile, factor, seconds besides


def soak_options(
    *, seed: int, server: str, minutes: float, rate: float, faults: int, retention_s: int | None, workers: int
) -> Options:
    seconds = minutes * 60
    return Options(
        seed=seed,
        server="valkey" if server == "valkey" else "redis",
        webhooks=round(seconds * rate),
        seconds=seconds,
        faults=faults,
        workers=workers,
        doubles=0.005 if faults else 0.0,
        soak=True,
        retention_s=retention_s or max(30, round(seconds / 5)),
        sinks=("first", "second", "slow"),
    )


def warm_s(options: Options) -> float:
    return options.retention_s + options.settle_after_s + SWEEP_S


def thirds(seen: Evidence, values: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Of (time, value): the values of the first and of the last third of the time after the warm-up."""
    from_s, until_s = warm_s(seen.options), seen.options.seconds
    third_s = (until_s - from_s) / 3
    first, last = [], []
    for at_s, value in values:
        if from_s <= at_s < from_s + third_s:
            first.append(value)
        elif until_s - third_s <= at_s < until_s:
            last.append(value)
    return first, last


def too_short(seen: Evidence) -> list[str]:
    needed_s = 2 * warm_s(seen.options)
    if seen.options.seconds >= needed_s:
        return []
    return [f"{seen.options.seconds:g} s are too short to judge by: {needed_s:g} s are needed at this retention"]


def memory_does_not_grow(seen: Evidence) -> Verdict:
    """The processes' resident sets, and Redis' memory and keys without its memory of calls, reach a plateau."""
    broken, measured = too_short(seen), []
    for name, free, value in figures(seen):
        first, last = thirds(seen, [(sample.at_s, value(sample)) for sample in of(seen, name)])
        before, after = share(first, 0.5), share(last, 0.5)
        unit = "" if name.endswith("keys") else " MB"
        scale = 1 if name.endswith("keys") else 1e6
        measured.append(f"{name} {before / scale:.0f} → {after / scale:.0f}{unit}")
        if after > before * GROWTH + free:
            broken.append(f"{name} grew from {before / scale:.1f}{unit} to {after / scale:.1f}{unit}")
    measured.append(
        f"of Redis without {len(first_accepted(seen))} calls remembered ({CALL_BYTES} bytes, {CALL_KEYS} key)"
    )
    return Verdict(promise="14 memory reaches a plateau", measured=", ".join(measured), broken=broken)


def figures(seen: Evidence) -> list[tuple[str, float, Callable[[Sample], float]]]:
    """Name, what it may grow by anyway, and how to read it from a sample."""
    names = sorted({sample.process for sample in seen.samples} - {"outside", "redis"})
    begun = first_accepted(seen)

    def remembered(sample: Sample) -> int:
        return bisect.bisect_right(begun, sample.at_s)

    return [
        *((name, FREE_RSS, lambda sample: float(sample.bytes)) for name in names),
        ("redis", FREE_USED, lambda sample: float(sample.bytes - CALL_BYTES * remembered(sample))),
        ("redis keys", FREE_KEYS, lambda sample: float((sample.keys or 0) - CALL_KEYS * remembered(sample))),
    ]


def first_accepted(seen: Evidence) -> list[float]:
    """When the first webhook of each call was accepted, in this order."""
    first: dict[Key, float] = {}
    for key, postings in seen.facts_by_key.items():
        times = [seen.accepted[posting.number] for posting in postings if posting.number in seen.accepted]
        call = key._replace(event=None)
        if times:
            first[call] = min(*times, first.get(call, times[0]))
    return sorted(first.values())


def of(seen: Evidence, name: str) -> list[Sample]:
    return [sample for sample in seen.samples if sample.process == name.partition(" ")[0]]


def latency_does_not_drift(seen: Evidence) -> Verdict:
    """From the acceptance of a webhook to its arrival at a healthy sink."""
    first, last = thirds(seen, latencies(seen))
    broken = too_short(seen)
    measured = []
    for part, factor, free_s in DRIFT:
        before, after = share(first, part), share(last, part)
        measured.append(f"p{part * 100:.0f} {before * 1000:.0f} → {after * 1000:.0f} ms")
        if after > before * factor + free_s:
            broken.append(f"p{part * 100:.0f} went from {before:.3f} s to {after:.3f} s")
    return Verdict(promise="15 latency does not drift", measured=", ".join(measured), broken=broken)


def latencies(seen: Evidence) -> list[tuple[float, float]]:
    """(when it was accepted, how long it took) of every fact, those with a failing record API left out."""
    taken = []
    for sink in HEALTHY:
        first = first_deliveries(seen, sink)
        for key, accepted_s in seen.accepted_by_key.items():
            if key in first and key.call_id not in seen.plan.record_faults:
                taken.append((accepted_s, max(0.0, first[key] - accepted_s)))
    return taken


def trend(seen: Evidence) -> str:
    """Each tenth of the run in a line."""
    length_s = seen.options.seconds / PARTS
    columns: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in range(PARTS)])
    for name, _, value in figures(seen):
        for sample in of(seen, name):
            put(columns[name], sample.at_s, length_s, value(sample) / (1 if name.endswith("keys") else 1e6))
    for at_s, took_s in latencies(seen):
        put(columns["ms"], at_s, length_s, took_s * 1000)
    names = [name for name in columns if name != "ms"]
    head = " ".join(f"{name:>11}" for name in ["until", *names, "p50 ms", "p99 ms"])
    lines = ["medians; MB where no unit is named; redis without the calls that it remembers by design", head]
    for part in range(PARTS):
        cells = [f"{(part + 1) * length_s:.0f} s", *(f"{share(columns[name][part], 0.5):.1f}" for name in names)]
        cells += [f"{share(columns['ms'][part], 0.5):.0f}", f"{share(columns['ms'][part], 0.99):.0f}"]
        lines.append(" ".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def put(column: Sequence[list[float]], at_s: float, length_s: float, value: float) -> None:
    if 0 <= at_s < PARTS * length_s:
        column[int(at_s / length_s)].append(value)


SOAK = (memory_does_not_grow, latency_does_not_drift)
