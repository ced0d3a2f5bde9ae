"""A sink for tests: it keeps what it is given."""

import httpx

from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import Delivery, Sink, SinkConfig


class RecordingSink(Sink):
    """Keeps every delivery in memory. The errors in `fails_with` are raised first, one an attempt."""

    def __init__(
        self, name: str = "recording", config: SinkConfig | None = None, http: httpx.AsyncClient | None = None
    ) -> None:
        super().__init__(name, config or SinkConfig(), http)  # type: ignore[arg-type] # it asks nobody
        self.deliveries: list[Delivery] = []
        self.fails_with: list[SinkError] = []

    @property
    def received(self) -> list[CallEvent]:
        """The events, in the order of their deliveries; one that was attempted again is there again."""
        return [delivery.event for delivery in self.deliveries]

    async def deliver(self, delivery: Delivery) -> None:
        if self.fails_with:
            raise self.fails_with.pop(0)
        self.deliveries.append(delivery)
