"""Redis servers, Sentinels and a proxy under the test's control."""

import asyncio
import inspect
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
import redis


def need(program: str, package: str) -> None:
    """Skip where a server is not installed; fail where they are required, as in CI."""
    if shutil.which(program) is None:
        message = f"{program} is not installed: apt install {package}"
        if os.environ.get("AFTERCALL_TEST_SERVERS") == "required":
            pytest.fail(message)
        pytest.skip(message)


_given: set[int] = set()


def free_port() -> int:
    """A port that nobody uses, below those that the system gives to clients; each test process has its own range.

    None is given twice: it may be a while until whoever got it listens there.
    """
    first = 10_000 + 4_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 5)
    while True:
        port = first + random.randrange(4_000)
        if port in _given:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


async def until(happens: Callable[[], Any], within_s: float = 30.0) -> None:
    """When it is so. The limit is for what never happens: a busy machine may need seconds for what takes a moment."""
    async with asyncio.timeout(within_s):
        while not (await found if inspect.isawaitable(found := happens()) else found):
            await asyncio.sleep(0.01)


async def until_alone() -> None:
    """When no task is left but the test's own."""
    await until(lambda: len(asyncio.all_tasks()) == 1)


def until_stopped(pid: int) -> None:
    """Wait until every thread of a process that was told to stop has stopped: one may still answer meanwhile."""

    def runs(stat: Path) -> bool:
        try:
            return stat.read_text().rpartition(") ")[2][0] not in "tT"
        except OSError:  # it has just ended
            return False

    deadline = time.monotonic() + 20
    while any(runs(stat) for stat in Path(f"/proc/{pid}/task").glob("*/stat")):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def a_certificate(directory: Path, *, address: str = "") -> tuple[str, str]:
    """Key and certificate, self-signed, for that address or a name that is not the server's, as Heroku's are."""
    need("openssl", "openssl")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=somewhere.example"]
    made += ["-addext", f"subjectAltName=IP:{address}"] if address else []
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return str(key), str(certificate)


FOLLOWED_AT_ONCE = ("--repl-diskless-sync-delay", "0")  # options of a primary whose replicas need not wait for others


class RedisServer:
    def __init__(self, directory: Path, *options: str, port: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = port or free_port()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        return ["redis-server", "--port", str(self.port), "--dir", str(self.directory), "--save", "", *self.options]

    def start(self) -> None:
        self.process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=0.2):
                    return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        until_stopped(self.process.pid)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class SentinelServer(RedisServer):
    """One of the Sentinels that watch over the service `calls`."""

    def __init__(self, directory: Path, primary: int, *options: str, quorum: int) -> None:
        super().__init__(directory, *options)
        self.configuration = directory / "sentinel.conf"
        self.configuration.write_text(
            f"sentinel monitor calls 127.0.0.1 {primary} {quorum}\n"
            "sentinel down-after-milliseconds calls 500\n"
            "sentinel failover-timeout calls 4000\n"
        )

    def command(self) -> list[str]:
        return ["redis-sentinel", str(self.configuration), *super().command()[1:]]

    def hasten(self) -> None:
        """Let it hear of the other Sentinels and of the replicas at once, not within ten seconds."""
        with redis.Redis(port=self.port) as asked:
            asked.execute_command("SENTINEL", "DEBUG", "PUBLISH-PERIOD", "200", "INFO-PERIOD", "200")


class Proxy:
    """Stands between clients and a server, as a load balancer does: it can lead elsewhere, or fall silent."""

    def __init__(self, target: int) -> None:
        self.target = target  # the port that new connections lead to
        self.port = free_port()
        self._speaks = asyncio.Event()  # of the connections from now on
        self._speaks.set()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for _ in range(5):  # also what was accepted just now; and a transport closes its socket in a turn of its own
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)
            await asyncio.sleep(0.01)

    def fall_silent(self) -> None:
        """Forward nothing more, in either direction, and close nothing; new connections are taken too."""
        self._speaks.clear()

    def speak_again(self) -> None:
        """To new connections. Those from before stay silent, as those to a host that lost its power do."""
        self._speaks = asyncio.Event()
        self._speaks.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        speaks, writers = self._speaks, [writer]
        ways: list[asyncio.Task[None]] = []
        try:
            await speaks.wait()
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(there_writer)
            ways = [
                asyncio.create_task(self._forward(reader, there_writer, speaks)),
                asyncio.create_task(self._forward(there_reader, writer, speaks)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # nobody is there: the client sees its connection closed
        finally:
            for way in ways:
                way.cancel()
            for one in writers:
                one.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, speaks: asyncio.Event) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await speaks.wait()
                writer.write(data)
                await writer.drain()
