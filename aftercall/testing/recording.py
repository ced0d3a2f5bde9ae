"""A sink for tests: it keeps what it is given."""

from aftercall.errors import SinkError
from aftercall.event import CallEvent
from aftercall.sinks.base import Delivery, Sink


class RecordingSink(Sink):
    """Keeps every delivery in memory. The errors in `fails_with` are raised first, one an attempt."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.deliveries: list[Delivery] = []
        self.fails_with: list[SinkError] = []

    @property
    def received(self) -> list[CallEvent]:
        return [delivery.event for delivery in self.deliveries]

    async def deliver(self, delivery: Delivery) -> None:
        if self.fails_with:
            raise self.fails_with.pop(0)
        self.deliveries.append(delivery)
