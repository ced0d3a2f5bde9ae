"""Amazon's services as moto plays them, in a process of its own. What it has is in memory, and dies with it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import boto3
import httpx

from aftercall.testing import Answer, Destination, SinkContract
from tests.servers import Proxy, free_port

KEYS = {"access_key_id": "AKIAFIXTUREFIXTURE00", "secret_access_key": "sesame-lantern-quartz-heron-7291"}
REGION = "eu-central-1"


class MotoServer:
    """One server for all the tests of a module: each takes a queue, topic or bucket of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def options(self) -> dict[str, Any]:
        """What leads a sink there."""
        return {"region": REGION, "endpoint_url": self.url, **KEYS}

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import moto.server as moto; moto.main()", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/moto-api/", timeout=10).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.05)
        raise AssertionError("moto_server did not start")

    def kill(self) -> None:
        """All that it has is lost: make the queues and buckets again after the next `start`."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        while self._clients:
            self._clients.popitem()[1].close()

    def client(self, service: str) -> Any:
        """A client of the tests' own, which goes to the server and not through a proxy."""
        if service not in self._clients:
            self._clients[service] = boto3.client(
                service,
                region_name=REGION,
                endpoint_url=self.url,
                aws_access_key_id=KEYS["access_key_id"],
                aws_secret_access_key=KEYS["secret_access_key"],
            )
        return self._clients[service]


def taken(sqs: Any, queue_url: str) -> list[dict[str, Any]]:
    """Every message that waits in a queue, taken out of it."""
    found: list[dict[str, Any]] = []
    while messages := sqs.receive_message(
        QueueUrl=queue_url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], AttributeNames=["All"]
    ).get("Messages"):
        found += messages
        for message in messages:
            sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
    return found


class AtMoto(SinkContract):
    """The contract through a proxy on the test's loop, which an outage takes away: moto itself would forget all."""

    moto: ClassVar[MotoServer]
    refused: ClassVar[Answer]  # what the service says to what it will never take

    async def start(self) -> None:
        self.proxy = Proxy(self.moto.port)
        await self.proxy.start()

    async def stop(self) -> None:
        await self.proxy.stop()

    @property
    def front(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    @contextlib.asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        await self.proxy.stop()
        yield
        await self.proxy.start()

    @contextlib.asynccontextmanager
    async def refusal(self) -> AsyncIterator[None]:
        destination = Destination()
        destination.answers = lambda _: self.refused
        await destination.start()
        self.proxy.target = destination.port  # of the connections from now on
        yield
        await destination.stop()
