"""The table of a run: each promise, whether it was kept, what was measured, and every breach with its ids."""

from pathlib import Path

from tests.chaos import conduct, deliveries
from tests.chaos.evidence import Evidence, Verdict
from tests.chaos.soak import SOAK, trend

SHOWN = 12
PROMISES = (
    conduct.everything_planned_was_done,
    deliveries.nothing_is_missing,
    deliveries.one_id_a_fact,
    deliveries.doubles_have_a_cause,
    deliveries.dead_letters_are_the_refused,
    deliveries.sequences_have_no_gaps,
    deliveries.nothing_stays_open,
    conduct.answers_are_true_and_in_time,
    conduct.work_comes_back,
    conduct.nothing_private_is_written,
    conduct.memory_is_bounded,
    deliveries.bytes_are_the_same,
    conduct.processes_end_when_asked,
    deliveries.calls_settle_once,
)


def judge(seen: Evidence) -> list[Verdict]:
    checks = (*PROMISES, *SOAK) if seen.options.soak else PROMISES
    return [check(seen) for check in checks]


def table(directory: Path) -> tuple[str, bool]:
    """The text, and whether every promise was kept. All breaches are in `broken.txt`, however many."""
    seen = Evidence(directory)
    verdicts = judge(seen)
    lines = [f"seed {seen.options.seed}, {seen.options.server}, plan {seen.run.plan}"]
    if seen.options.soak:
        lines.append(trend(seen))
    lines += [
        f"  {'BROKEN' if verdict.broken else 'kept':6}  {verdict.promise:52}  {verdict.measured}"
        for verdict in verdicts
    ]
    for verdict in verdicts:
        if verdict.broken:
            lines.append(f"{verdict.promise}: {len(verdict.broken)} breaches")
            lines += [f"    {breach}" for breach in verdict.broken[:SHOWN]]
    breaches = [f"{verdict.promise}: {breach}\n" for verdict in verdicts for breach in verdict.broken]
    (directory / "broken.txt").write_text("".join(breaches))
    if breaches:
        lines.append(f"all breaches: {directory / 'broken.txt'}")
    return "\n".join(lines), not breaches
