"""Promises about how the processes behave: what they answer, how they recover, what they write down, how they end."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.chaos.evidence import Evidence, Key, Verdict, describe, key_of_arrival, share
from tests.chaos.facts import Fault, Sample
from tests.chaos.plan import HEALTHY
from tests.chaos.provider import IMPATIENCE, SILENCE
from tests.stack import KEYS, SECRET

ANSWER_S = 3.0
OUR_LATENESS_S = 0.25  # of the generator itself, beyond what was measured
MOST_LATENESS_S = 2.0
STOP_S = 30.0  # what platforms give a process after SIGTERM
STARTING_S = 5.0  # a process may not mind SIGTERM yet, and has nothing to lose
GOOD_ENDS = {"service": (-15,)}  # uvicorn stops well, and then lets the signal have its way
MAX_RSS_BYTES = 512 * 1024 * 1024
PRIVATE = re.compile(rb"\+?1555010\d{4}|that-must-not-leave")


def everything_planned_was_done(seen: Evidence) -> Verdict:
    """What was not tried proves nothing."""
    done = {fault.number for fault in seen.faults}
    broken = [f"fault {planned.number} did not happen" for planned in seen.plan.breaks if planned.number not in done]
    sent = {(post.posting, post.copy) for post in seen.posts}
    for posting in seen.plan.postings:
        copies = posting.copies + (posting.again_at_s is not None)
        missing = [copy for copy in range(1, copies + 1) if (posting.number, copy) not in sent]
        broken += [f"copy {copy} of posting {posting.number} was not sent" for copy in missing]
    if b"Traceback" in (seen.directory / "outside.log").read_bytes():
        broken.append("the receivers failed by themselves: see outside.log")
    return Verdict(
        promise="0 the plan was carried out", measured=f"{len(sent)} copies, {len(done)} faults", broken=broken
    )


def answers_are_true_and_in_time(seen: Evidence) -> Verdict:
    """2xx for what is stored alone, 401 for what is forged, 503 or nothing otherwise; all within three seconds."""
    postings = {posting.number: posting for posting in seen.plan.postings}
    broken, slowest, unavailable = [], 0.0, 0
    for post in seen.posts:
        if post.error in (SILENCE, IMPATIENCE):
            broken.append(
                f"posting {post.posting} was answered {post.status or 'never'} at {post.sent_s} s: {post.error}"
            )
        if post.status is None:
            continue
        posting, until_s = postings[post.posting], post.sent_s + post.took_s
        slowest = max(slowest, post.took_s)
        late_s = min(seen.lateness(post.sent_s, until_s), MOST_LATENESS_S)
        if post.took_s > ANSWER_S + OUR_LATENESS_S + late_s:
            broken.append(f"posting {posting.number} was answered {post.status} after {post.took_s:.2f} s")
        good = 401 if posting.expect == "refused" else 204
        unavailable += post.status == 503
        if post.status not in (good, 503) or (post.status == 503 and posting.expect == "refused"):
            broken.append(f"posting {posting.number} ({posting.expect}) was answered {post.status}")
        if post.status == 204 and posting.expect == "event":
            broken += [
                f"posting {posting.number} was answered 204 at {until_s:.2f} s; Redis was gone from {gone_s:.2f} s on"
                for gone_s, back_s in seen.redis_gone
                if gone_s < post.sent_s and until_s < back_s
            ]
    broken += uncounted(seen)
    answered = sum(post.status is not None for post in seen.posts)
    measured = f"{answered} answers, {unavailable} of them 503; the slowest after {slowest:.2f} s"
    return Verdict(promise="7 2xx only for what is stored, each answer in 3 s", measured=measured, broken=broken)


def uncounted(seen: Evidence) -> Iterator[str]:
    """Facts of which fewer copies were counted than were answered 2xx. A second analysis is left out."""
    counted = {row["id"]: int(row.get("copies", 0)) for row in seen.rows("events")}  # none came of a call.settled
    answered = Counter(post.posting for post in seen.posts if post.status == 204)
    first = seen.ids_at(HEALTHY[0])
    for key, postings in seen.facts_by_key.items():
        ids = first.get(key, set())
        for id_ in ids & set(counted) if len(postings) == 1 else ():
            if counted[id_] < answered[postings[0].number]:
                yield f"{id_}: {answered[postings[0].number]} copies were answered 204, {counted[id_]} were counted"


def work_comes_back(seen: Evidence) -> Verdict:
    """What a killed process had under way goes on within a minute; later faults set the clock back."""
    broken = []
    waits = [(wait_s, how_s, what) for wait_s, how_s, what in returns(seen)]
    for wait_s, since_s, what in waits:
        if since_s > seen.options.recover_s:
            broken.append(f"{what} came back after {wait_s:.1f} s, {since_s:.1f} s after the last fault in between")
    took = [wait_s for wait_s, _, _ in waits]
    measured = (
        f"{len(took)} attempts cut off; back after {share(took, 0.5):.1f} s (p50), {share(took, 1):.1f} s at most"
    )
    delays = []
    for sink in HEALTHY:  # of what was accepted: a call.settled waits by design
        first = first_deliveries(seen, sink)
        for key, accepted_s in seen.accepted_by_key.items():
            if key not in first:
                continue  # nothing_is_missing says so
            delay_s = first[key] - accepted_s
            delays.append(delay_s)
            since_s = first[key] - last_trouble(seen, accepted_s, first[key], key.call_id)
            if since_s > seen.options.recover_s:
                broken.append(f"{describe(key)} came to {sink} {delay_s:.1f} s late, {since_s:.1f} s after any fault")
    p50, p99, most = (share(delays, part) for part in (0.5, 0.99, 1))
    measured += f"; accepted to delivered {p50:.2f} s (p50), {p99:.1f} s (p99), {most:.1f} s at most"
    return Verdict(promise="8 a killed process's work is back in 60 s", measured=measured, broken=broken)


def returns(seen: Evidence) -> Iterator[tuple[float, float, str]]:
    """Attempts cut off by a killed worker: until the next one, that since the last fault in between, and which."""
    kills = [fault for fault in seen.faults if fault.kind == "kill" and fault.target.startswith("worker")]
    for (sink, id_), attempts in seen.by_delivery.items():
        if sink == "flaky":
            continue
        for one, other in zip(attempts, [*attempts[1:], None], strict=True):
            if one.answer or not any(abs(fault.gone_s - one.until_s) < 1 for fault in kills):
                continue
            if other is not None:
                after_s = other.at_s - last_trouble(seen, one.until_s, other.at_s, one.subject)
                yield other.at_s - one.until_s, after_s, f"{id_} for {sink}"
            elif not any(200 <= attempt.answer < 300 for attempt in attempts):
                yield float("inf"), float("inf"), f"{id_} for {sink}"


def first_deliveries(seen: Evidence, sink: str) -> dict[Key, float]:
    """Key → when the last of its facts was first delivered."""
    first: dict[Key, dict[str, float]] = defaultdict(dict)
    for arrival in seen.delivered:
        if arrival.sink == sink:
            first[key_of_arrival(arrival)].setdefault(arrival.id, arrival.at_s)
    return {key: max(times.values()) for key, times in first.items()}


def last_trouble(seen: Evidence, from_s: float, until_s: float, call_id: str) -> float:
    """The last moment until then at which a worker, Redis or the call's record API was in trouble, or `from_s`."""
    faults = [fault for fault in seen.troubles if fault.at_s <= until_s and fault.until_s >= from_s]
    moments = [min(fault.until_s, until_s) for fault in faults]
    if call_id in seen.plan.record_faults:
        moments += [
            fetch.until_s
            for fetch in seen.fetches_of(call_id)
            if fetch.answer != 200 and from_s <= fetch.until_s <= until_s
        ]
    return max(moments, default=from_s)


def nothing_private_is_written(seen: Evidence) -> Verdict:
    """No secret, phone number or word of a transcript in any log or in any process's argv."""
    secrets = [word.encode() for word in (*KEYS.values(), SECRET, SECRET.removeprefix("whsec_"), seen.plan.marker)]
    broken, size = [], 0
    texts = [(path.name, path.read_bytes()) for path in sorted(seen.directory.glob("*.log"))]
    texts += [(f"argv of {line.process}", line.words.encode()) for line in seen.cmdlines]
    for name, text in texts:
        size += len(text)
        found = [secret for secret in secrets if secret in text] + PRIVATE.findall(text)[:3]
        broken += [f"{name} holds {word.decode()!r}" for word in found]
    measured = f"{len(texts)} logs and argvs, {size / 1e6:.1f} MB"
    return Verdict(promise="9 nothing private in logs or process lists", measured=measured, broken=broken)


def memory_is_bounded(seen: Evidence) -> Verdict:
    """The resident sets of services and workers: the highest, and the most that one grew by once it had started."""
    lives: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in seen.samples:
        if sample.process.startswith(("service", "worker")):
            lives[sample.process, sample.pid].append(sample)
    broken: list[str] = []
    highest: Counter[str] = Counter()
    growth: Counter[str] = Counter()
    for (process, pid), samples in lives.items():
        kind, sizes = process.partition("-")[0], [sample.bytes for sample in samples]
        later = [sample.bytes for sample in samples if sample.at_s > samples[0].at_s + STARTING_S]
        highest[kind] = max(highest[kind], *sizes)
        growth[kind] = max(growth[kind], later[-1] - later[0] if later else 0)
        if max(sizes) > MAX_RSS_BYTES:
            broken.append(f"{process} ({pid}) held {max(sizes) / 1e6:.0f} MB")
    figures = [f"{kind} {size / 1e6:.0f} MB at most (+{growth[kind] / 1e6:.0f})" for kind, size in highest.items()]
    return Verdict(promise="10 memory is bounded", measured=", ".join(sorted(figures)), broken=broken)


def processes_end_when_asked(seen: Evidence) -> Verdict:
    """None ends by itself, and SIGTERM ends each, well, within what platforms give it."""
    broken, slowest = [], 0.0
    ended = [life for life in seen.lives if life.what == "ended"]
    began = {life.pid: life.at_s for life in seen.lives if life.what == "began"}
    for life in ended:
        well = GOOD_ENDS.get(life.process.partition("-")[0], ())
        young = life.at_s - began.get(life.pid, life.at_s) < STARTING_S
        if life.asked is None:
            broken.append(f"{life.process} ended by itself at {life.at_s:.2f} s with status {life.status}")
        elif life.asked != "kill" and life.status not in (0, *well, *((-15,) if young else ())):
            broken.append(f"{life.process} was asked to stop and ended with status {life.status}")
    for fault in (fault for fault in seen.faults if fault.kind == "term"):
        took_s = fault.gone_s - fault.at_s - frozen_s(seen, fault)
        slowest = max(slowest, took_s)
        if took_s > STOP_S:
            broken.append(f"{fault.target} took {took_s:.1f} s to stop")
    measured = f"{len(ended)} ends, the slowest stop {slowest:.1f} s"
    return Verdict(promise="12 processes end only when asked, and then well", measured=measured, broken=broken)


def frozen_s(seen: Evidence, fault: Fault) -> float:
    """How long of a fault its process was frozen."""
    others = [other for other in seen.faults if other.kind == "freeze" and other.target == fault.target]
    return sum(max(0.0, min(fault.gone_s, other.back_s) - max(fault.at_s, other.gone_s)) for other in others)
