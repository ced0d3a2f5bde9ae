"""`python -m benchmarks`: measure, print one table of ratios, say which targets were met."""

import argparse
import asyncio
import sys
from datetime import UTC, datetime
from statistics import median

from benchmarks import latency
from benchmarks.load import CONNECTIONS
from benchmarks.processes import BenchmarkError, machine
from benchmarks.throughput import CONTESTANTS, Round, run_round
from benchmarks.webhooks import BODY_BYTES

OF_BARE = 0.7
TIMES_FASTAPI = 5.0
P50_S = 0.020


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter, with more noise")
    parser.add_argument("--strict", action="store_true", help="exit 1 if a target is missed")
    parser.add_argument("--rounds", type=int, help="how many rounds (default 3; quick: 2)")
    parser.add_argument("--seconds", type=float, help="how long each contestant is measured in a round")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 3)
    seconds = options.seconds or (1.5 if options.quick else 4.0)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}, loopback, "
        f"Valkey with appendfsync always, {BODY_BYTES // 1000} KB, {CONNECTIONS} connections, "
        f"{rounds} rounds of {seconds:g} s"
    )
    try:
        done = _throughput(rounds, seconds)
        taken = asyncio.run(latency.measure(5 if options.quick else 20))
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    _print_contestants(done)
    met = _print_ratios(done, sorted(taken))
    return 0 if met or not options.strict else 1


def _throughput(rounds: int, seconds: float) -> dict[str, list[Round]]:
    done: dict[str, list[Round]] = {contestant.name: [] for contestant in CONTESTANTS}
    for number in range(rounds):
        for contestant in CONTESTANTS:
            result = run_round(contestant, seconds, seed=number)
            done[contestant.name].append(result)
            print(f"  round {number + 1}: {contestant.name:<10}{result.per_s:6.0f} webhooks/s", file=sys.stderr)
    return done


def _print_contestants(done: dict[str, list[Round]]) -> None:
    print(f"\n{'one server process':<20}{'webhooks/s':>12}{'p50':>10}{'p99':>10}{'CPU each':>12}{'of bare':>10}")
    for name, results in done.items():
        spent = [result.cpu_s for result in results if result.cpu_s is not None]
        cpu = f"{median(spent) * 1e6:.0f} µs" if spent else "?"
        print(
            f"{name:<20}{median(result.per_s for result in results):>12.0f}"
            f"{median(result.p50_s for result in results) * 1000:>7.1f} ms"
            f"{median(result.p99_s for result in results) * 1000:>7.1f} ms"
            f"{cpu:>12}{median(_ratios(results, done['bare'])):>10.2f}"
        )


def _print_ratios(done: dict[str, list[Round]], taken: list[float]) -> bool:
    print(f"\n{'':<34}{'measured':>10}{'(range)':>16}{'target':>12}")
    of_bare = _ratios(done["aftercall"], done["bare"])
    times_fastapi = _ratios(done["aftercall"], done["fastapi"])
    p50_s, p99_s = median(taken), taken[min(len(taken) - 1, len(taken) * 99 // 100)]
    verdicts = (
        _print_line("aftercall / bare", of_bare, "×", f"≥ {OF_BARE:g} ×", median(of_bare) >= OF_BARE),
        _print_line(
            "aftercall / fastapi", times_fastapi, "×", f"≥ {TIMES_FASTAPI:g} ×", median(times_fastapi) >= TIMES_FASTAPI
        ),
        _print_line(
            "webhook → sink, p50", [one * 1000 for one in taken], "ms", f"≤ {P50_S * 1000:g} ms", p50_s <= P50_S
        ),
    )
    print(f"{'webhook → sink, p99':<34}{p99_s * 1000:>7.1f} ms   of {len(taken)}")
    return all(verdicts)


def _print_line(what: str, values: list[float], unit: str, target: str, met: bool) -> bool:
    spread = f"{min(values):.1f}–{max(values):.1f}" if unit == "ms" else f"{min(values):.2f}–{max(values):.2f}"
    measured = f"{median(values):.1f} {unit}" if unit == "ms" else f"{median(values):.2f} {unit}"
    print(f"{what:<34}{measured:>10}{spread:>16}{target:>12}  {'ok' if met else 'MISSED'}")
    return met


def _ratios(results: list[Round], others: list[Round]) -> list[float]:
    """Round by round: what disturbed the machine for a while then disturbed both."""
    return [one.per_s / other.per_s for one, other in zip(results, others, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
