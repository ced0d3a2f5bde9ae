"""What `/metrics` shows: this process's webhooks, and from the ledger what is open, delivered and dead everywhere."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aftercall.ledger import Ledger
from aftercall.states import PROCESS_LANE, SETTLE_LANE, deliver_lane


class WebhookFigures:
    """Counts the answers of one service process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = Counter(
            "aftercall_webhooks", "Webhooks answered, by outcome.", ["account", "outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "aftercall_webhook_seconds",
            "From the request's head to its answer.",
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
        )
        self._bound: dict[tuple[str, str], Counter] = {}

    def count(self, account: str, outcome: str, seconds: float) -> None:
        counter = self._bound.get((account, outcome))
        if counter is None:
            counter = self._bound[account, outcome] = self._answers.labels(account, outcome)
        counter.inc()
        self._seconds.observe(seconds)

    def refused(self, outcome: str) -> None:
        """Count what was refused before it was known whose it is."""
        self._answers.labels("", outcome).inc()


async def exposition(figures: WebhookFigures, ledger: Ledger, sinks: Iterable[str]) -> bytes:
    """All of it in Prometheus' text format. Raises `LedgerUnavailable`."""
    registry = CollectorRegistry()
    registry.register(_Families(await _ledger_families(ledger, list(sinks))))
    return generate_latest(figures.registry) + generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


async def _ledger_families(ledger: Ledger, sinks: list[str]) -> list[Metric]:
    lanes = [PROCESS_LANE, SETTLE_LANE, *(deliver_lane(sink) for sink in sinks)]
    accepted = CounterMetricFamily("aftercall_events_accepted", "Webhooks stored.", labels=["account"])
    duplicates = CounterMetricFamily("aftercall_duplicates", "Copies of stored webhooks.", labels=["account"])
    attempts = CounterMetricFamily("aftercall_deliveries", "Attempts, by outcome.", labels=["sink", "outcome"])
    for (what, label), count in (await ledger.counters()).items():
        if what == "accepted":
            accepted.add_metric([label], count)
        elif what == "duplicate":
            duplicates.add_metric([label], count)
        elif what in ("delivered", "retry", "dead"):
            attempts.add_metric([label, what], count)
    opened = GaugeMetricFamily("aftercall_open_work", "Work not finished yet.", labels=["lane"])
    overdue = GaugeMetricFamily("aftercall_overdue_seconds", "How long the earliest is overdue.", labels=["lane"])
    for lane, (count, seconds) in (await ledger.open_work(lanes)).items():
        opened.add_metric([lane], count)
        overdue.add_metric([lane], max(0.0, seconds or 0.0))
    states = GaugeMetricFamily(
        "aftercall_sink_state",
        "1 for the state of each sink: ok, failing, open, paused, disabled.",
        labels=["sink", "state"],
    )
    for sink, health in (await ledger.sink_health(sinks)).items():
        states.add_metric([sink, health.state], 1)
    dead = GaugeMetricFamily("aftercall_dead_letters", "Dead letters kept.", value=await ledger.dead_count())
    return [accepted, duplicates, attempts, opened, overdue, states, dead]
