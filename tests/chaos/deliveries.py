"""Promises about what arrives: nothing missing, nothing twice without a cause, in order, the same everywhere."""

from collections import Counter, defaultdict
from itertools import pairwise

from tests.chaos.evidence import SETTLED, Evidence, Key, Verdict, describe, key_of_arrival
from tests.chaos.facts import Arrival

ASKED_ONCE = frozenset({"call_rated"})  # the record of an unknown kind of event is not waited for
RECORDING_S = 5.0  # so long after an attempt its outcome may still not be recorded


def nothing_is_missing(seen: Evidence) -> Verdict:
    """Every webhook was accepted in the end, and is an event at every sink that does not refuse it."""
    sinks = [sink for sink in seen.options.sinks if sink != "refusing"]
    broken = [
        f"posting {posting.number} ({posting.event} of {posting.call_id}) was never answered 2xx"
        for posting in seen.plan.postings
        if posting.expect != "refused" and posting.number not in seen.accepted
    ]
    for sink in sinks:
        there = seen.ids_at(sink)
        for key, postings in seen.facts_by_key.items():
            if len(there.get(key, ())) < len(postings):
                broken.append(f"{sink} has {len(there.get(key, ()))} of {len(postings)} {describe(key)}")
    incomplete = {
        arrival.id for arrival in seen.arrivals if not arrival.complete and not may_lack_its_record(seen, arrival)
    }
    broken += [f"{id_} came without its record, which was there" for id_ in sorted(incomplete)]
    facts = sum(map(len, seen.facts_by_key.values()))
    return Verdict(
        promise="1 every accepted webhook reaches every sink",
        measured=f"{facts} facts, {len(sinks)} sinks",
        broken=broken,
    )


def may_lack_its_record(seen: Evidence, arrival: Arrival) -> bool:
    """Whether the record was asked for once; or the call settled by such an event alone, its record never there yet."""
    if arrival.type == SETTLED:
        first_s = min(attempt.at_s for attempt in seen.arrivals if attempt.id == arrival.id)
        return not any(fetch.answer == 200 and fetch.until_s <= first_s for fetch in seen.fetches_of(arrival.subject))
    return arrival.event in ASKED_ONCE


def one_id_a_fact(seen: Evidence) -> Verdict:
    """As many ids as facts, the same at every sink, and none for what is no fact. (What settled: below.)"""
    broken = []
    everywhere: dict[Key, set[str]] = defaultdict(set)
    for arrival in seen.arrivals:
        everywhere[key_of_arrival(arrival)].add(arrival.id)
    for key, ids in everywhere.items():
        expected = len(seen.facts_by_key.get(key, ()))
        if len(ids) > expected and key.event != SETTLED:
            broken.append(f"{len(ids)} ids for {expected} {describe(key)}: {' '.join(sorted(ids))}")
    keys: dict[str, set[Key]] = defaultdict(set)
    for key, ids in everywhere.items():
        for id_ in ids:
            keys[id_].add(key)
    broken += [f"{id_} stands for {len(its)} different events" for id_, its in keys.items() if len(its) > 1]
    return Verdict(promise="2 one id a fact, the same everywhere", measured=f"{len(seen.ids)} ids", broken=broken)


def calls_settle_once(seen: Evidence) -> Verdict:
    """A call of which an end was accepted has one settled event, with one id at all sinks; no other call has one."""
    sinks = [sink for sink in seen.options.sinks if sink != "refusing"]
    broken = []
    for sink in sinks:
        there = seen.ids_at(sink)
        broken += [f"{sink} has no {describe(key)}" for key in sorted(seen.over) if key not in there]
    ids: dict[Key, set[str]] = defaultdict(set)
    for arrival in seen.arrivals:
        if arrival.type == SETTLED:
            ids[key_of_arrival(arrival)].add(arrival.id)
    for key, its in ids.items():
        if len(its) > 1:
            broken.append(f"{len(its)} ids for {describe(key)}: {' '.join(sorted(its))}")
        if key not in seen.over:
            broken.append(f"{' '.join(sorted(its))}: {describe(key)}, which was not told to be over")
    wordless = {arrival.id for arrival in seen.arrivals if (arrival.type == SETTLED) != (arrival.event is None)}
    broken += [f"{id_} is aftercall's and has a provider's word, or the reverse" for id_ in sorted(wordless)]
    calls = {key._replace(event=SETTLED) for key in seen.facts_by_key}
    measured = f"{len(ids)} of {len(calls)} calls, {len(calls - seen.over)} not over"
    return Verdict(promise="13 a call settles once, when it is over", measured=measured, broken=broken)


def doubles_have_a_cause(seen: Evidence) -> Verdict:
    """What was delivered twice was under way, or not recorded yet, when something was killed or frozen."""
    causes: Counter[str] = Counter()
    broken = []
    for (sink, id_), attempts in seen.by_delivery.items():
        given = [attempt for attempt in attempts if 200 <= attempt.answer < 300]
        for one, other in pairwise(given):
            cause = cause_of(seen, one)
            causes[cause or "no fault"] += 1
            if cause is None:
                gap = f"{one.at_s:.2f} s and {other.at_s:.2f} s"
                broken.append(f"{id_} came to {sink} at {gap}, and nothing was broken about the first time")
    part = causes.total() / max(1, len(seen.delivered))
    if part > seen.options.doubles:
        broken.append(f"{part:.2%} of the deliveries are doubles; {seen.options.doubles:.2%} may be")
    cut = sum(arrival.answer == 0 and arrival.sink != "flaky" for arrival in seen.arrivals)
    by = ", ".join(f"{cause} {count}" for cause, count in causes.most_common())
    measured = (
        f"{causes.total()} of {len(seen.delivered)} ({part:.3%}{': ' if by else ''}{by}); {cut} more were cut off"
    )
    return Verdict(promise="3 doubles only where something was broken, and few", measured=measured, broken=broken)


def cause_of(seen: Evidence, attempt: Arrival) -> str | None:
    """The fault nearest to the end of an attempt, if one fell into it or the moment in which it is recorded."""
    until_s = attempt.until_s + RECORDING_S
    near = [fault for fault in seen.costly if fault.at_s <= until_s and fault.until_s >= attempt.at_s]
    fault = min(near, key=lambda fault: abs(fault.at_s - attempt.until_s), default=None)
    return None if fault is None else f"{fault.kind} {fault.target.partition('-')[0]}"


def dead_letters_are_the_refused(seen: Evidence) -> Verdict:
    """Each event is a dead letter of the sink that refuses, and nothing else is one."""
    letters = Counter((row["event"], row["sink"]) for row in seen.rows("dead"))
    refused = {(id_, "refusing") for id_ in seen.ids} if "refusing" in seen.options.sinks else set()
    broken = [f"{id_} is no dead letter of {sink}" for id_, sink in sorted(refused - set(letters))]
    broken += [f"{id_} is a dead letter of {sink}" for id_, sink in sorted(set(letters) - refused)]
    broken += [f"{id_} is {count} dead letters of {sink}" for (id_, sink), count in letters.items() if count > 1]
    command = seen.commands.get("dead")
    if command is None or command.status != 0:
        broken = [f"`aftercall dead list` ended with status {command.status if command else '?'}"]
    took = f", listed in {command.took_s:.1f} s" if command else ""
    return Verdict(
        promise="4 dead letters are what was refused for good", measured=f"{len(letters)}{took}", broken=broken
    )


def sequences_have_no_gaps(seen: Evidence) -> Verdict:
    calls: dict[tuple[str, str], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for arrival in seen.arrivals:
        calls[arrival.source, arrival.subject][arrival.id].add(arrival.sequence)
    broken = []
    for (source, call_id), by_id in calls.items():
        numbers = sorted(number for its in by_id.values() for number in its)
        if numbers != list(range(1, len(by_id) + 1)):
            broken.append(f"{source} {call_id} has the numbers {numbers}: {' '.join(by_id)}")
    return Verdict(promise="5 a call's events are numbered 1 to n", measured=f"{len(calls)} calls", broken=broken)


def nothing_stays_open(seen: Evidence) -> Verdict:
    opened = seen.open_work
    broken = [f"{count:g} open in {lane}" for lane, count in (opened or {}).items() if count]
    if opened is None:
        broken.append("/metrics never answered after the load")
    else:
        lanes = ("process", "settle", *(f"deliver:{sink}" for sink in seen.options.sinks))
        broken += [f"/metrics says nothing of {lane}" for lane in lanes if lane not in opened]
    command = seen.commands.get("events")
    if seen.options.soak:
        pass  # by then most events are past their retention
    elif command is None or command.status != 0:
        broken.append(f"`aftercall events list` ended with status {command.status if command else '?'}")
    else:
        rows = {row["id"]: row for row in seen.rows("events")}
        broken += [f"{id_} is not listed" for id_ in sorted(seen.ids - set(rows))]
        broken += [f"{id_} is listed and never arrived" for id_ in sorted(set(rows) - seen.ids)]
        broken += [f"{id_} is {row['state']}" for id_, row in rows.items() if row["state"] != "done"]
    took = f", events listed in {command.took_s:.1f} s" if command else ""
    return Verdict(promise="6 nothing stays open", measured=f"{len(opened or ())} lanes{took}", broken=broken)


def bytes_are_the_same(seen: Evidence) -> Verdict:
    """All attempts of an id, at all sinks, carry the same bytes, signed."""
    digests: dict[str, set[str]] = defaultdict(set)
    for arrival in seen.arrivals:
        digests[arrival.id].add(arrival.digest)
    broken = [f"{id_} came as {len(its)} different bodies" for id_, its in digests.items() if len(its) > 1]
    broken += [
        f"{arrival.id} came to {arrival.sink} unsigned, or signed wrongly"
        for arrival in seen.arrivals
        if not arrival.signed
    ]
    return Verdict(
        promise="11 an id is the same bytes every time", measured=f"{len(seen.arrivals)} attempts", broken=broken
    )
