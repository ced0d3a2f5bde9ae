"""`aftercall dev`: service, worker and an embedded Valkey on this machine, with your own configuration if any."""

import asyncio
import os
import shlex
import signal
import tomllib
from contextlib import suppress
from pathlib import Path

import msgspec
import rich_click as click

from aftercall.cli.local import SIMULATOR_KEYS, Processes, check_checkout, simulated_configuration, start_valkey
from aftercall.settings import DEFAULT_FILE

HOME = Path(".aftercall")
SINK = '\n[sinks.dev_console]\ntype = "console"\nevents = ["*"]\n'
FROM_ENVIRONMENT = {
    "retell": ("RETELL_API_KEY", "RETELL_API_KEY"),
    "cartesia": ("CARTESIA_API_KEY", "CARTESIA_WEBHOOK_SECRET"),
    "ultravox": ("ULTRAVOX_API_KEY", "ULTRAVOX_WEBHOOK_SECRET"),
}


@click.command("dev")
@click.option("--port", default=8000, show_default=True, help="The port of the service.")
def command(port: int) -> None:
    """Run everything locally and print each event; data is kept in .aftercall/ between runs.

    Accounts come from aftercall.toml or the environment as in production; where there are none, from a simulator that
    plays calls, for the sinks in aftercall.toml too. Providers reach a service on your machine through a tunnel of your
    choice.
    """
    check_checkout()
    valkey = start_valkey(HOME / "valkey")
    try:
        with suppress(KeyboardInterrupt, asyncio.CancelledError):
            asyncio.run(_run(valkey.connection_url, port))
    finally:
        valkey.stop()


def _end_on_signals() -> None:
    """Also on SIGTERM what was started is stopped; and on SIGINT where a shell that put us aside had it ignored."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - it is called in one
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _run(redis_url: str, port: int) -> None:
    _end_on_signals()
    url = f"http://127.0.0.1:{port}"
    config = HOME / "aftercall.toml"
    environ = {
        "REDIS_URL": redis_url,
        "AFTERCALL_CONFIG": str(config.absolute()),
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    own = _own_configuration() or ""
    plays = not _has_accounts(own)
    async with Processes({**environ, **SIMULATOR_KEYS} if plays else environ) as processes:
        if plays:
            seed = str(
                int.from_bytes(os.urandom(4), "big")
            )  # other calls each time: the ledger remembers the last ones
            simulator = await processes.start("simulator", "--port", "0", "--seed", seed, "--play", url, read=True)
            assert simulator.stdout is not None  # noqa: S101 - it was started with a pipe
            listening = msgspec.json.decode(await simulator.stdout.readline())["listening"]
            own = simulated_configuration(listening, own)
            reading = asyncio.create_task(_drain(simulator.stdout))
        else:
            reading = None
        config.write_text(own + SINK)
        await processes.start("service")
        await processes.start("workers")
        click.echo(f"aftercall runs at {url}; its API is described at {url}/schema. Press Ctrl-C to stop.", err=True)
        told = {**environ, **SIMULATOR_KEYS} if plays else environ
        (HOME / "env").write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in told.items()))
        click.echo(f"In another shell, `source {HOME}/env` leads `aftercall sinks list` and the others here.", err=True)
        watched = ("service", "workers")
        await asyncio.wait(
            [asyncio.create_task(processes.running[name].wait()) for name in watched],
            return_when=asyncio.FIRST_COMPLETED,
        )
        if reading:
            reading.cancel()
        raise click.ClickException("the service or the worker stopped; its last lines above say why")


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.readline():
        pass


def _has_accounts(text: str) -> bool:
    try:
        return bool(tomllib.loads(text).get("accounts"))
    except tomllib.TOMLDecodeError:
        return True  # the service says what is wrong


def _own_configuration() -> str | None:
    """The TOML text of the configuration that production would use here; None if there is none."""
    path = Path(os.environ.get("AFTERCALL_CONFIG") or DEFAULT_FILE)
    if path.exists():
        return path.read_text("utf-8")
    return (
        "\n".join(
            f'[accounts.{name}]\nprovider = "{name}"\napi_key = "${{{key}}}"\nwebhook_secrets = ["${{{secret}}}"]\n'
            for name, (key, secret) in FROM_ENVIRONMENT.items()
            if os.environ.get(key)
        )
        or None
    )
