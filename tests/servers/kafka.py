"""A Kafka broker in a process of its own: librdkafka's mock cluster, which keeps what it is sent in memory.

It chooses its port anew at each start, and topics come to be when they are asked for.
"""

import signal
import subprocess
import sys
from typing import Self

from tests.servers import until_stopped

_BROKER = """
import time
from confluent_kafka import Producer
cluster = Producer({"test.mock.num.brokers": 1})
[broker] = cluster.list_topics(timeout=10).brokers.values()
print(broker.port, flush=True)
time.sleep(3600)
"""


class KafkaServer:
    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BROKER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        until_stopped(self._process.pid)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
