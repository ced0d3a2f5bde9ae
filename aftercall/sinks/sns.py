"""Amazon SNS: one message an event, published to a standard or a FIFO topic.

Delivered means that SNS answered with a MessageId: the message is saved, and SNS takes it to the subscribers. Their
filter policies can go by the attributes `type`, `account` and `id`. A FIFO topic takes an event that comes again within
five minutes only once; a standard topic cannot know it again: dedupe on `id`. A message is at most 256 KiB, also where
the topic's MaximumMessageSize allows more. Of a longer event the transcript is left out (null), and the attribute
`left_out` says `transcript`. https://docs.aws.amazon.com/sns/latest/api/API_Publish.html,
https://docs.aws.amazon.com/sns/latest/dg/large-message-payloads.html (2026-11).
"""

from typing import Annotated, Any

import httpx
import msgspec
from msgspec import Meta

from aftercall.errors import SinkError
from aftercall.event import encode
from aftercall.sinks.aws import AwsConfig, AwsSink, attributes, grouped, message_text
from aftercall.sinks.base import Delivery

MAX_BYTES = 262_144
_ATTRIBUTES = 1_024  # more than ours take, which count too


class Sns(AwsSink):
    raw = True
    service = "sns"

    class Config(AwsConfig, frozen=True, kw_only=True):
        topic_arn: Annotated[
            str,
            Meta(pattern=r"^arn:[^:]+:sns:[^:]+:[^:]+:[^:]+$", description="the topic's ARN, which says its region"),
        ]

    def __init__(self, name: str, config: Config, http: httpx.AsyncClient) -> None:
        super().__init__(name, config, http)
        self._topic = config.topic_arn
        self.region = self.region or self._topic.split(":")[3]

    def render(self, delivery: Delivery) -> dict[str, Any]:
        event, body, left_out = delivery.event, delivery.body, ""
        if len(body) > MAX_BYTES - _ATTRIBUTES and delivery.format == "event":
            call = msgspec.structs.replace(event.data.call, transcript=None)
            data = msgspec.structs.replace(event.data, call=call)
            body, left_out = encode(msgspec.structs.replace(event, data=data)), "transcript"
        fifo = grouped(event.subject, event.id) if self._topic.endswith(".fifo") else {}
        of = attributes(type=event.type, account=event.data.call.account, id=event.id, left_out=left_out)
        return {"TopicArn": self._topic, "Message": message_text(body), "MessageAttributes": of, **fifo}

    async def deliver(self, delivery: Delivery) -> str:
        message = self.render(delivery)
        if len(message["Message"].encode()) > MAX_BYTES - _ATTRIBUTES:
            raise SinkError("the event is longer than the 256 KiB that SNS takes", permanent=True)
        return str((await self.ask("publish", **message))["MessageId"])
