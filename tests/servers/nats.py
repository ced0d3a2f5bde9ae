"""A NATS server with JetStream that a test may kill and start again, with what it has stored."""

import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.servers import free_port, need

PASSWORD = "ses@me:lan/tern#7"
TOKEN = "quartz-heron-62"


def answers(port: int) -> bool:
    """Whether somebody takes connections on that port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
        return True
    return False


def until_it_answers(port: int, *, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while not answers(port):
        assert time.monotonic() < deadline, f"nobody takes connections on port {port}"
        time.sleep(0.02)


class NatsServer:
    """Wants a user `desk` with the password; may be restarted with other settings."""

    def __init__(self, directory: Path) -> None:
        need("nats-server", "nats-server")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.settings = f'authorization {{ user: desk, password: "{PASSWORD}" }}'
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        configuration = self.directory / "nats.conf"
        configuration.write_text(
            f'port: {self.port}\nhost: "127.0.0.1"\njetstream {{ store_dir: "{self.directory}" }}\n{self.settings}\n'
        )
        self._process = subprocess.Popen(["nats-server", "-c", str(configuration)], stderr=subprocess.DEVNULL)
        until_it_answers(self.port)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
