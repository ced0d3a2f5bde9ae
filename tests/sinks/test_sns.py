import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import count
from typing import Any

import msgspec
import pytest

from aftercall.call import Turn
from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import decode
from aftercall.sinks.base import Delivery
from aftercall.sinks.sns import Sns
from aftercall.testing import Answer, Destination
from tests.samples import a_call, a_delivery, an_event
from tests.servers.moto import AtMoto, MotoServer, taken

moto = MotoServer()
names = count(1)
TOO_LONG = Answer(
    400,
    "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidParameter</Code>"
    "<Message>Mirela too long</Message></Error></ErrorResponse>",
)
ARN = "arn:aws:sns:eu-west-3:123456789012:calls"


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    moto.start()
    yield
    moto.kill()


def a_topic(*, fifo: bool = False, policy: str = "") -> tuple[str, str]:
    """A topic, and a queue that gets what is published there, as it is."""
    name, of_fifo = (f"calls-{next(names)}.fifo", {"FifoTopic": "true"}) if fifo else (f"calls-{next(names)}", {})
    topic = moto.client("sns").create_topic(Name=name, Attributes=of_fifo)["TopicArn"]
    queue = moto.client("sqs").create_queue(QueueName=name, Attributes={"FifoQueue": "true"} if fifo else {})
    moto.client("sns").subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=topic.replace(":sns:", ":sqs:"),
        Attributes={"RawMessageDelivery": "true", **({"FilterPolicy": policy} if policy else {})},
    )
    return topic, queue["QueueUrl"]


@contextlib.asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Sns]:
    async with make_client(guarded=False) as http:
        sink = Sns("topic", msgspec.convert({**moto.options, **options}, Sns.Config), http)
        await sink.open()
        try:
            yield sink
        finally:
            await sink.close()


def waiting(queue: str) -> list[dict[str, Any]]:
    return taken(moto.client("sqs"), queue)


async def test_a_subscriber_gets_the_event_with_what_policies_filter_by() -> None:
    topic, queue = a_topic()
    delivery = a_delivery()

    async with opened(topic_arn=topic) as sink:
        receipt = await sink.deliver(delivery)

    [message] = waiting(queue)
    assert decode(message["Body"].encode()) == delivery.event
    values = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert values == {"id": "evt_lantern", "type": "call.ended", "account": "acme"}
    assert receipt


async def test_a_subscription_gets_only_what_its_policy_names() -> None:
    topic, queue = a_topic(policy='{"type": ["call.settled"], "account": ["acme"]}')

    async with opened(topic_arn=topic) as sink:
        await sink.deliver(a_delivery(an_event(id="evt_a")))
        await sink.deliver(a_delivery(an_event(id="evt_b", type="call.settled")))
        await sink.deliver(a_delivery(an_event(id="evt_c", type="call.settled", call=a_call(account="other"))))

    assert [decode(message["Body"].encode()).id for message in waiting(queue)] == ["evt_b"]


async def test_a_fifo_topic_gets_the_call_as_group_and_the_event_to_know_it_by() -> None:
    topic, queue = a_topic(fifo=True)

    async with opened(topic_arn=topic) as sink:
        await sink.deliver(a_delivery())

    [message] = waiting(queue)
    assert message["Attributes"]["MessageGroupId"] == "call_7f3"
    assert message["Attributes"]["MessageDeduplicationId"] == "evt_lantern"


async def test_of_a_very_long_call_the_transcript_stays_out_and_the_message_says_so() -> None:
    topic, queue = a_topic()
    spoken = [Turn(role="user", text="你好" * 100)] * 1_000
    delivery = a_delivery(an_event(call=a_call(transcript=spoken)))

    async with opened(topic_arn=topic) as sink:
        await sink.deliver(delivery)

    [message] = waiting(queue)
    assert decode(message["Body"].encode()) == an_event(call=a_call(transcript=None))
    assert message["MessageAttributes"]["left_out"]["StringValue"] == "transcript"


async def test_nothing_is_left_out_of_a_webhook_as_it_arrived() -> None:
    topic, queue = a_topic()
    event = an_event(call=a_call(transcript=[Turn(role="user", text="hello")]))

    async with opened(topic_arn=topic) as sink:
        with pytest.raises(SinkError, match="longer than the 256 KiB"):
            await sink.deliver(Delivery(event=event, body=b'"%s"' % (b"x" * 262_144), format="raw"))

    assert waiting(queue) == []


@pytest.mark.parametrize("form", ["event", "raw"])
async def test_what_is_too_long_without_a_transcript_too_is_refused_for_good(form: Any) -> None:
    topic, queue = a_topic()
    event = an_event(call=a_call(error="你" * 90_000))  # fewer characters than the limit has bytes

    async with opened(topic_arn=topic) as sink:
        with pytest.raises(SinkError, match="longer than the 256 KiB") as caught:
            await sink.deliver(Delivery(event=event, body=a_delivery(event).body, format=form))

    assert caught.value.permanent
    assert waiting(queue) == []


async def test_what_the_topic_says_is_too_long_is_refused_for_good() -> None:
    destination = Destination()
    destination.answers = lambda _: TOO_LONG
    await destination.start()
    try:
        async with opened(topic_arn=ARN, endpoint_url=destination.url) as sink:
            with pytest.raises(SinkError) as caught:
                await sink.deliver(a_delivery())
    finally:
        await destination.stop()

    assert (str(caught.value), caught.value.permanent) == ("SNS refused: InvalidParameter", True)


async def test_a_topic_that_is_not_there_may_be_made() -> None:
    topic, _ = a_topic()
    moto.client("sns").delete_topic(TopicArn=topic)

    async with opened(topic_arn=topic) as sink:
        with pytest.raises(SinkError) as caught:
            await sink.deliver(a_delivery())

    assert not caught.value.permanent


async def test_the_region_is_the_topics() -> None:
    async with make_client(guarded=False) as http:
        assert Sns("topic", Sns.Config(topic_arn=ARN), http).region == "eu-west-3"
        assert Sns("topic", Sns.Config(topic_arn=ARN, region="eu-west-1"), http).region == "eu-west-1"


@pytest.mark.parametrize("arn", ["calls", "arn:aws:sqs:eu-west-3:123456789012:calls", ARN + ":a-subscription"])
def test_what_is_no_topics_arn_is_refused(arn: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="topic_arn"):
        msgspec.convert({"topic_arn": arn}, Sns.Config)


class TestContract(AtMoto):
    sink = Sns
    moto = moto
    refused = TOO_LONG
    fifo = True

    async def options(self) -> dict[str, Any]:
        self.topic, self.queue = a_topic(fifo=self.fifo)
        self.messages: list[str] = []
        return {**moto.options, "endpoint_url": self.front, "topic_arn": self.topic}

    async def received(self) -> Iterable[str | bytes]:
        self.messages += [message["Body"] for message in await asyncio.to_thread(waiting, self.queue)]
        return self.messages


class TestContractOfAStandardTopic(TestContract):
    idempotent = False  # it has no deduplication: a consumer dedupes on the attribute `id`
    fifo = False
