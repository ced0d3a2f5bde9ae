import asyncio
import contextlib
import hashlib
import logging
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import count
from typing import Any

import msgspec
import pytest

from aftercall.client import make_client
from aftercall.errors import SinkError
from aftercall.event import decode
from aftercall.sinks.base import Delivery
from aftercall.sinks.sqs import Sqs
from aftercall.testing import Answer, Destination
from tests.samples import a_call, a_delivery, an_event
from tests.servers.moto import KEYS, REGION, AtMoto, MotoServer, taken

moto = MotoServer()
names = count(1)


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    moto.start()
    yield
    moto.kill()


def a_queue(*, fifo: bool = False, **attributes: str) -> str:
    name = f"calls-{next(names)}" + (".fifo" if fifo else "")
    made = {**attributes, **({"FifoQueue": "true"} if fifo else {})}
    return str(moto.client("sqs").create_queue(QueueName=name, Attributes=made)["QueueUrl"])


@contextlib.asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Sqs]:
    async with make_client(guarded=False) as http:
        sink = Sqs("queue", msgspec.convert({**moto.options, **options}, Sqs.Config), http)
        await sink.open()
        try:
            yield sink
        finally:
            await sink.close()


async def refused(sink: Sqs, delivery: Delivery | None = None) -> SinkError:
    with pytest.raises(SinkError) as caught:
        await sink.deliver(delivery or a_delivery())
    return caught.value


# The message


async def test_a_message_is_the_event_with_its_type_and_id_beside_it() -> None:
    queue = a_queue()
    delivery = a_delivery(an_event(call=a_call(error="Grüezi \0 你好 👋🏽")))

    async with opened(queue_url=queue) as sink:
        receipt = await sink.deliver(delivery)

    [message] = taken(moto.client("sqs"), queue)
    assert decode(message["Body"].encode()) == delivery.event
    assert {name: value["StringValue"] for name, value in message["MessageAttributes"].items()} == {
        "id": "evt_lantern",
        "type": "call.ended",
    }
    assert message["MessageId"] == receipt
    assert "MessageGroupId" not in message["Attributes"]


async def test_characters_that_sqs_refuses_arrive_as_escapes() -> None:
    queue = a_queue()
    delivery = a_delivery(an_event(call=a_call(error="before \uffff\ufffe after")))

    async with opened(queue_url=queue) as sink:
        await sink.deliver(delivery)

    [message] = taken(moto.client("sqs"), queue)
    assert not {"\uffff", "\ufffe"} & set(message["Body"])
    assert decode(message["Body"].encode()) == delivery.event


async def test_a_fifo_queue_has_a_group_for_each_call_and_keeps_its_order() -> None:
    queue = a_queue(fifo=True)

    async with opened(queue_url=queue) as sink:
        for number in (1, 2, 3):
            for call in ("call_a", "call_b"):
                event = an_event(id=f"evt_{call}_{number}", call=a_call(id=call))
                await sink.deliver(a_delivery(event))

    messages = taken(moto.client("sqs"), queue)
    for call in ("call_a", "call_b"):
        of_call = [message for message in messages if message["Attributes"]["MessageGroupId"] == call]
        assert [m["Attributes"]["MessageDeduplicationId"] for m in of_call] == [f"evt_{call}_{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize("call_id", ["with blanks in it", "ünïcode", "x" * 129])
async def test_a_call_id_that_no_group_can_have_becomes_one(call_id: str) -> None:
    queue = a_queue(fifo=True)

    async with opened(queue_url=queue) as sink:
        await sink.deliver(a_delivery(an_event(call=a_call(id=call_id))))

    [message] = taken(moto.client("sqs"), queue)
    assert message["Attributes"]["MessageGroupId"] == hashlib.sha256(call_id.encode()).hexdigest()


async def test_a_sink_that_was_closed_may_be_opened_again() -> None:
    queue = a_queue()

    async with opened(queue_url=queue) as sink:
        await sink.close()
        await sink.open()
        await sink.deliver(a_delivery())

    assert len(taken(moto.client("sqs"), queue)) == 1


# Refusals and faults


async def test_an_event_above_a_mebibyte_is_refused_for_good_and_not_sent() -> None:
    queue = a_queue()
    delivery = a_delivery(an_event(call=a_call(error="x" * 1_048_576)))

    async with opened(queue_url=queue) as sink:
        error = await refused(sink, delivery)

    assert (error.permanent, str(error)) == (True, "the event is longer than the 1 MiB that SQS takes")
    assert taken(moto.client("sqs"), queue) == []


async def test_what_is_too_long_for_the_queue_is_refused_for_good() -> None:
    queue = a_queue(MaximumMessageSize="1024")

    async with opened(queue_url=queue) as sink:
        error = await refused(sink)

    assert error.permanent
    assert str(error).startswith("SQS refused: ")


async def test_a_queue_that_is_not_there_may_be_made() -> None:
    queue = a_queue()
    moto.client("sqs").delete_queue(QueueUrl=queue)

    async with opened(queue_url=queue) as sink:
        error = await refused(sink)

        assert (error.permanent, error.gone) == (False, False)
        moto.client("sqs").create_queue(QueueName=queue.rpartition("/")[2])
        await sink.deliver(a_delivery())

    assert len(taken(moto.client("sqs"), queue)) == 1


@pytest.mark.parametrize(
    ("status", "code", "is_permanent", "retry_after"),
    [
        (400, "InvalidMessageContents", True, None),
        (400, "InvalidParameterValue", True, None),
        (400, "RequestThrottled", False, 0.0),
        (403, "AccessDenied", False, None),
        (403, "InvalidClientTokenId", False, None),
        (400, "AWS.SimpleQueueService.NonExistentQueue", False, None),
        (500, "InternalFailure", False, None),
        (503, "ServiceUnavailable", False, None),
    ],
)
async def test_a_refusal_says_the_services_word_and_nothing_else(
    status: int, code: str, is_permanent: bool, retry_after: float | None
) -> None:
    destination = Destination()
    destination.answers = lambda _: Answer(
        status, {"__type": code, "message": f"of {KEYS['secret_access_key']} Mirela"}
    )
    await destination.start()
    try:
        async with opened(queue_url=f"{destination.url}/1/calls", endpoint_url=destination.url) as sink:
            error = await refused(sink)
    finally:
        await destination.stop()

    assert (str(error), error.permanent, error.retry_after) == (f"SQS refused: {code}", is_permanent, retry_after)
    assert len(destination.refused) == 1  # botocore would have tried five times
    told = "".join(traceback.format_exception(error))
    assert "Mirela" not in told
    assert KEYS["secret_access_key"] not in told


async def test_an_answer_with_another_md5_is_no_delivery() -> None:
    destination = Destination()
    destination.answers = lambda _: Answer(200, {"MessageId": "m-1", "MD5OfMessageBody": "0" * 32})
    await destination.start()
    try:
        async with opened(queue_url=f"{destination.url}/1/calls", endpoint_url=destination.url) as sink:
            error = await refused(sink)
    finally:
        await destination.stop()

    assert not error.permanent
    assert "MD5" in str(error)


async def test_no_html_page_of_a_proxy_is_taken_for_an_answer() -> None:
    destination = Destination()
    destination.answers = lambda _: Answer(502, "<html>Mirela</html>")
    await destination.start()
    try:
        async with opened(queue_url=f"{destination.url}/1/calls", endpoint_url=destination.url) as sink:
            error = await refused(sink)
    finally:
        await destination.stop()

    assert not error.permanent
    assert "Mirela" not in str(error)


async def test_after_the_server_was_killed_and_came_back_the_same_sink_delivers() -> None:
    queue = a_queue()
    async with opened(queue_url=queue) as sink:
        await sink.deliver(a_delivery())
        moto.kill()
        assert str(await refused(sink)).startswith("SQS does not answer")

        moto.start()  # it forgot its queues
        moto.client("sqs").create_queue(QueueName=queue.rpartition("/")[2])
        for _ in range(3):
            with contextlib.suppress(SinkError):
                await sink.deliver(a_delivery(an_event(id="evt_after")))
                break

    assert [decode(m["Body"].encode()).id for m in taken(moto.client("sqs"), queue)] == ["evt_after"]


# Options, credentials, logs


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-3.amazonaws.com/123456789012/calls", "eu-west-3"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/calls", "cn-north-1"),
        ("https://us-west-2.queue.amazonaws.com/123456789012/calls", "us-west-2"),
        ("https://queue.example.com/123456789012/calls", None),
    ],
)
async def test_the_region_is_the_queues_unless_it_is_set(url: str, region: str | None) -> None:
    async with make_client(guarded=False) as http:
        assert Sqs("queue", Sqs.Config(queue_url=url), http).region == region
        assert Sqs("queue", Sqs.Config(queue_url=url, region="ca-central-1"), http).region == "ca-central-1"


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"access_key_id": "AKIA"}, "write both or neither"),
        ({"secret_access_key": "sesame"}, "write both or neither"),
        ({"endpoint_url": "minio:9000"}, "endpoint_url: expected http"),
        ({"queue_url": "arn:aws:sqs:eu-west-1:123456789012:calls"}, "queue_url: expected https"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, str], remedy: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=remedy) as caught:
        msgspec.convert({"queue_url": "https://sqs.eu-west-1.amazonaws.com/1/calls", **options}, Sqs.Config)

    assert "sesame" not in str(caught.value)


async def test_without_keys_the_environments_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = a_queue()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["secret_access_key"])

    async with opened(queue_url=queue, access_key_id=None, secret_access_key=None) as sink:
        await sink.deliver(a_delivery())

    assert len(taken(moto.client("sqs"), queue)) == 1


async def test_without_any_credentials_opening_fails_and_may_succeed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = a_queue()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "BOTO_CONFIG"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    config = msgspec.convert({"endpoint_url": moto.url, "region": REGION, "queue_url": queue}, Sqs.Config)

    async with make_client(guarded=False) as http:
        sink = Sqs("queue", config, http)
        with pytest.raises(SinkError, match="no AWS credentials") as caught:
            await sink.open()
        assert not caught.value.permanent

        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["access_key_id"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["secret_access_key"])
        await sink.open()
        await sink.deliver(a_delivery())
        await sink.close()


async def test_nothing_is_logged_even_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened(queue_url=a_queue()) as sink:
        await sink.deliver(a_delivery())
        await refused(sink, a_delivery(an_event(call=a_call(error="x" * 1_048_576))))

    assert [record for record in caplog.records if "botocore" in record.name] == []


# The contract


class TestContract(AtMoto):
    sink = Sqs
    moto = moto
    fifo = True

    async def options(self) -> dict[str, Any]:
        self.queue = a_queue(fifo=self.fifo)
        self.messages: list[str] = []
        return {**moto.options, "endpoint_url": self.front, "queue_url": self.queue}

    async def received(self) -> Iterable[str | bytes]:
        self.messages += [message["Body"] for message in await asyncio.to_thread(taken, moto.client("sqs"), self.queue)]
        return self.messages

    @contextlib.asynccontextmanager
    async def refusal(self) -> AsyncIterator[None]:
        attributes = {"MaximumMessageSize": "1024"}
        moto.client("sqs").set_queue_attributes(QueueUrl=self.queue, Attributes=attributes)
        yield


class TestContractOfAStandardQueue(TestContract):
    idempotent = False  # it has no deduplication: a consumer dedupes on the attribute `id`
    fifo = False
