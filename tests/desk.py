"""Where an operator gives commands: a configuration, providers that listen on a port, and aftercall inside the test."""

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner, Result

from aftercall.cli import aftercall as commands
from simulator.__main__ import Server
from simulator.app import make_app
from simulator.faults import Faults, parse_rule
from simulator.parts import Call
from tests.inside import API_KEYS, SECRETS, Inside, inside
from tests.stack import ROOT


class Desk:
    """Where commands are given: with a configuration, the simulator on a real port, and aftercall inside the test."""

    def __init__(self, directory: Path, redis_url: str, aftercall: Inside, faults: Faults) -> None:
        self.directory = directory
        self.environ = {"REDIS_URL": redis_url, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self.aftercall = aftercall
        self._faults = faults
        self.app = make_app(aftercall.records, API_KEYS, faults)
        self.asked: list[tuple[float, str]] = []
        self.url = ""
        self._on_asking: Callable[[], None] = lambda: None

    def on_asking(self, act: Callable[[], None]) -> None:
        """Do this at each request, before it is answered."""
        self._on_asking = act

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """The simulator's app, with a note of when which path was asked for."""
        self.asked.append((time.monotonic(), scope["path"]))
        self._on_asking()
        await self.app(scope, receive, send)

    def fault(self, *rules: str) -> None:
        """From now on these rules hold, and no other."""
        self._faults.__init__(parse_rule(rule) for rule in rules)  # type: ignore[misc]

    def configure(self, url: str, *, key: str | None = None, more: str = "") -> None:
        accounts = "".join(
            f'[accounts.{name}]\nprovider = "{name}"\napi_key = "{key or API_KEYS[name]}"\n'
            f'webhook_secrets = ["{SECRETS[name]}"]\nbase_url = "{url}"\n\n'
            for name in API_KEYS
        )
        (self.directory / "aftercall.toml").write_text(accounts + more)

    async def give(self, *arguments: str) -> Result:
        """A command, within this process."""
        return await asyncio.to_thread(CliRunner().invoke, commands, arguments)

    async def reconcile(self, *arguments: str) -> Result:
        return await self.give("reconcile", *arguments)

    async def spawn(self, *arguments: str, stderr: int = asyncio.subprocess.PIPE) -> asyncio.subprocess.Process:
        """`aftercall reconcile`, as a process."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aftercall.cli", "reconcile", *arguments),
            env=self.environ,
            cwd=self.directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """The app on a port of its own."""
    server = Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", interface="asgi3")
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # uvicorn has no event to wait for
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            await serving


@asynccontextmanager
async def a_desk(
    directory: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, calls: Iterable[Call]
) -> AsyncIterator[Desk]:
    """A desk in that directory; the providers have these calls."""
    (directory / "inside").mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setattr("aftercall.reconcile.RETRY_S", (0.01, 0.01))
    monkeypatch.setattr("aftercall.erasure.A_FEW_S", (0.01, 0.01))
    faults = Faults()
    async with inside(redis_url, directory / "inside", calls) as aftercall:
        made = Desk(directory, redis_url, aftercall, faults)
        async with listening(made.serve) as made.url:
            made.configure(made.url)
            yield made


def rows(result: Result) -> list[dict[str, str]]:
    """What it printed with `--json`."""
    return [json.loads(line) for line in result.stdout.splitlines()]
