"""The judgement over a day: each promise, what was measured, and what broke it."""

from collections import Counter, defaultdict
from collections.abc import Iterable

import msgspec

from simulator.calls import event_type
from simulator.parts import Call
from tests.day.run import Day, Delivered

TOLD = ("call.ended", "call.analyzed", "call.billed")
SHOWN = 8


class Verdict(msgspec.Struct, frozen=True):
    promise: str
    measured: str
    broken: list[str]


def table(day: Day) -> tuple[str, bool]:
    """The text, and whether every promise was kept."""
    verdicts = [
        the_day_was_played(day),
        each_call_ends_and_settles_once(day),
        what_was_lost_is_there(day),
        one_id_one_content(day),
        nothing_is_doubled(day),
        reconciling_again_finds_nothing(day),
        the_erased_are_told_of_once(day),
        the_erased_stay_away(day),
        no_word_of_them_is_left(day),
        commands_end_well(day),
    ]
    lines = [f"{len(day.calls)} calls"]
    lines += [f"  {'BROKEN' if one.broken else 'kept':6}  {one.promise:46}  {one.measured}" for one in verdicts]
    lines.append("  time    " + ", ".join(f"{what} {took:.0f} s" for what, took in day.timings_s.items()))
    for one in verdicts:
        if one.broken:
            lines.append(f"{one.promise}: {len(one.broken)} breaches")
            lines += [f"    {breach}" for breach in one.broken[:SHOWN]]
    return "\n".join(lines), not any(one.broken for one in verdicts)


def events_of(day: Day) -> dict[str, list[Delivered]]:
    """Each call's events until the erasure, one for each id, in the order in which they came."""
    found: dict[str, dict[str, Delivered]] = defaultdict(dict)
    for one in day.delivered:
        if one.type != "call.erased":
            found[one.call].setdefault(one.id, one)
    return {call_id: list(events.values()) for call_id, events in found.items()}


def lost_of(day: Day) -> dict[str, set[str]]:
    """The types of the webhooks of each call that were lost."""
    lost: dict[str, set[str]] = defaultdict(set)
    for fact in day.played.get("dropped", []):
        lost[fact["call_id"]].add(fact["type"])
    return lost


def is_nowhere(call: Call, lost: set[str]) -> bool:
    """An Ultravox call that deleted itself, and of which every webhook was lost.

    The list of deleted calls shows such a call, and not whether it was its owner who had it deleted: it is left alone.
    """
    told = {event_type(call.provider, webhook.event) for webhook in call.webhooks}
    return deleted_itself(call) and told <= lost


def deleted_itself(call: Call) -> bool:
    """Then the list of deleted calls shows that it ended, and nothing does that it was billed."""
    return (call.provider, call.story) == ("ultravox", "private")


def the_day_was_played(day: Day) -> Verdict:
    played = day.played
    sent, lost = len(played.get("facts", [])), len(played.get("dropped", []))
    broken = [] if played.get("webhooks") == sent else [f"{sent} webhooks, {played.get('webhooks')} answered 2xx"]
    share = lost / max(1, sent + lost)
    return Verdict("every webhook sent was taken", f"{sent} sent, {lost} lost ({share:.0%})", broken)


def each_call_ends_and_settles_once(day: Day) -> Verdict:
    events, lost = events_of(day), lost_of(day)
    broken, gone = [], 0
    for call in day.calls:
        counts = Counter(one.type for one in events.get(call.id, []))
        ends = (counts["call.ended"], counts["call.settled"])
        if is_nowhere(call, lost[call.id]):
            gone += 1
        if ends != ((0, 0) if is_nowhere(call, lost[call.id]) else (1, 1)):
            broken.append(f"{call.provider} {call.story} {call.id}: {ends[0]} ended, {ends[1]} settled")
    measured = f"{len(day.calls) - gone} calls; {gone} deleted themselves with every webhook lost"
    return Verdict("each call has one call.ended, one call.settled", measured, broken)


def what_was_lost_is_there(day: Day) -> Verdict:
    events, lost = events_of(day), lost_of(day)
    broken, due, found = [], 0, 0
    for call in day.calls:
        types = {event_type(call.provider, webhook.event) for webhook in call.webhooks} & lost[call.id] & set(TOLD)
        if deleted_itself(call):
            types &= set() if is_nowhere(call, lost[call.id]) else {"call.ended"}
        due += len(types)
        via = {one.type for one in events.get(call.id, []) if one.via == "reconcile"}
        found += len(types & via)
        broken += [f"{call.provider} {call.story} {call.id}: no {type_}" for type_ in types - via]
    accepted = Counter(row["type"] for row in day.reconciled[0] if row["done"] == "accepted")
    told = ", ".join(f"{count} {type_}" for type_, count in sorted(accepted.items()))
    return Verdict("reconciling finds what was lost", f"{found} of {due}; accepted: {told}", broken)


def one_id_one_content(day: Day) -> Verdict:
    contents: dict[str, set[int]] = defaultdict(set)
    for one in day.delivered:
        contents[one.id].add(one.content)
    broken = [f"{id_}: {len(seen)} contents" for id_, seen in contents.items() if len(seen) > 1]
    return Verdict("an event id has one content", f"{len(contents)} ids, {len(day.delivered)} deliveries", broken)


def nothing_is_doubled(day: Day) -> Verdict:
    """By call, type and the provider's word for it; the day has no analysis that is run again."""
    ids: dict[tuple[str, str, str | None], set[str]] = defaultdict(set)
    for one in day.delivered:
        ids[one.call, one.type, one.provider_event].add(one.id)
    broken = [f"{call} {type_} {word}: {len(seen)} ids" for (call, type_, word), seen in ids.items() if len(seen) > 1]
    return Verdict("nothing is told under two ids", f"{len(ids)} facts", broken)


def reconciling_again_finds_nothing(day: Day) -> Verdict:
    later = [row for round_ in day.reconciled[1:] for row in round_]
    measured = ", ".join(str(len(round_)) for round_ in day.reconciled) + " found, round by round"
    return Verdict("a second and a third reconcile find nothing", measured, [str(row) for row in later])


def the_erased_are_told_of_once(day: Day) -> Verdict:
    ids: dict[str, set[str]] = defaultdict(set)
    for one in day.delivered:
        if one.type == "call.erased":
            ids[one.call].add(one.id)
    broken = [f"{call_id}: not told" for call_id in day.erased if len(ids[call_id]) != 1]
    broken += [f"{call_id}: was not to be erased" for call_id in ids.keys() - day.erased.keys()]
    at_provider = sum(day.erased.values())
    return Verdict("each erasure is told once", f"{len(day.erased)} erased, {at_provider} at the provider too", broken)


def the_erased_stay_away(day: Day) -> Verdict:
    after = day.delivered[day.erasing_ended :]
    back = [one for one in after if one.call in day.erased and one.type != "call.erased"]
    refused = [f"{count} webhooks answered {status}" for status, count in day.resent.items() if status >= 300]
    broken = [f"{one.call}: {one.type} via {one.via}" for one in back] + refused
    if len(after) < len(day.calls) - len(day.erased):
        broken.append(f"the replay delivered only {len(after)} events")
    measured = f"{len(after)} deliveries by the replay, {day.resent.total()} webhooks sent again"
    return Verdict("nothing brings them back", measured, broken)


def no_word_of_them_is_left(day: Day) -> Verdict:
    broken = [f"{word} in {', '.join(keys)}" for word, keys in day.words_after.items()]
    if day.words_before != len(day.erased):
        broken.append(f"only {day.words_before} markers were in Redis before: the search does not find them")
    measured = f"markers in Redis: {day.words_before} before, {len(day.words_after)} after"
    return Verdict("no word of them is in Redis", measured, broken)


def commands_end_well(day: Day) -> Verdict:
    broken = [f"aftercall {name}: exit {code}" for name, code in day.exit_codes.items() if code]
    return Verdict("every command exits 0", " · ".join(sorted(_names(day.exit_codes))), broken)


def _names(commands: Iterable[str]) -> set[str]:
    return {command.split()[0] for command in commands}
