"""Amazon SQS: one message an event, on a standard or a FIFO queue.

Delivered means that SQS answered with a MessageId and with the MD5 of the body that was sent. A FIFO queue, whose URL
ends with .fifo, takes an event that comes again within five minutes only once, by its id, and keeps the order of each
call. A standard queue cannot know it again: dedupe on the attribute `id`. A message is at most 1 MiB with its
attributes, or what the queue's own MaximumMessageSize says; a longer one is refused for good.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html (2026-11).
"""

import hashlib
import re
from typing import Annotated, Any

import httpx
from msgspec import Meta

from aftercall.errors import SinkError
from aftercall.sinks.aws import AwsConfig, AwsSink, attributes, grouped, message_text
from aftercall.sinks.base import Delivery, url_scheme

MAX_BYTES = 1_048_576
_REGION = re.compile(r"https?://(?:sqs\.([a-z0-9-]+)|([a-z0-9-]+)\.queue)\.amazonaws\.com")


class Sqs(AwsSink):
    raw = True
    service = "sqs"

    class Config(AwsConfig, frozen=True, kw_only=True):
        queue_url: Annotated[str, Meta(description="the queue's URL, which also says its region")]

        def __post_init__(self) -> None:
            super().__post_init__()
            if url_scheme(self.queue_url) not in ("http", "https"):
                raise ValueError("queue_url: expected https:// and a host")

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._queue = config.queue_url
        found = _REGION.match(self._queue)
        self.region = self.region or (found and (found[1] or found[2])) or None

    def render(self, delivery: Delivery) -> dict[str, Any]:
        event = delivery.event
        return {
            "QueueUrl": self._queue,
            "MessageBody": message_text(delivery.body),
            "MessageAttributes": attributes(type=event.type, id=event.id),
            **(grouped(event.subject, event.id) if self._queue.endswith(".fifo") else {}),
        }

    async def deliver(self, delivery: Delivery) -> str:
        message = self.render(delivery)
        sent = message["MessageBody"].encode()
        if len(sent) > MAX_BYTES:
            raise SinkError("the event is longer than the 1 MiB that SQS takes", permanent=True)
        answer = await self.ask("send_message", **message)
        if answer.get("MD5OfMessageBody") != hashlib.md5(sent, usedforsecurity=False).hexdigest():
            raise SinkError("SQS took another text than was sent: its MD5 differs")
        return str(answer["MessageId"])
