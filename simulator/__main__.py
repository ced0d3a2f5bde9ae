"""`python -m simulator`: serves the APIs, and with `--play` sends the webhooks.

The calls are the usual thirteen, or with `--day` so many of the last 24 hours; `--fault` says what goes wrong.
On stdout one JSON object a line: `{"listening": URL}`, then `{"sent": …}` for each webhook answered, and
`{"played": …}` at the end; messages go to stderr. It serves until SIGTERM or SIGINT, then exits 0.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator

import httpx
import uvicorn

from simulator.app import make_app
from simulator.calls import PROVIDERS, make_calls
from simulator.day import make_day
from simulator.faults import FaultError, Faults, Rule, parse_rule
from simulator.parts import Call, Json, compact
from simulator.player import play, say
from simulator.records import Records

READY_WITHIN_S = 60.0

# The environment's variables, and what counts where they are not set. Retell signs with the API key.
DEFAULTS = {
    "RETELL_API_KEY": "key_simulator_retell",
    "CARTESIA_API_KEY": "sk_car_simulator",
    "CARTESIA_WEBHOOK_SECRET": "simulator-cartesia-webhook-secret",
    "ULTRAVOX_API_KEY": "simulator.ultravox",
    "ULTRAVOX_WEBHOOK_SECRET": "simulator-ultravox-webhook-secret",
}


class Server(uvicorn.Server):
    """Leaves the signals to `run`: uvicorn would raise them again after its end, and the exit code would not be 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m simulator", description="Retell, Cartesia and Ultravox on loopback."
    )
    parser.add_argument(
        "--port", type=int, default=0, help="where to serve the records; 0 (the default) is any free port"
    )
    parser.add_argument("--play", metavar="TARGET", help="base URL of aftercall's service, to send the webhooks to")
    parser.add_argument("--speed", type=float, default=1.0, help="2 plays in half the time")
    parser.add_argument("--seed", type=int, default=1, help="other calls, with other ids")
    parser.add_argument("--only", choices=PROVIDERS, help="the calls of one provider")
    parser.add_argument(
        "--day", metavar="COUNT", type=int, help="so many short calls of the last 24 hours, instead of the usual ones"
    )
    parser.add_argument(
        "--fault",
        metavar="RULE",
        type=fault,
        action="append",
        default=[],
        help='what goes wrong, as "webhook retell drop 20%%" or "get * 429 first 2"; may be repeated',
    )
    options = parser.parse_args()
    if options.day is not None and options.day < 1:
        parser.error("--day takes a number of calls, 1 or more")
    if options.speed <= 0:
        parser.error("--speed must be above 0")
    if options.play and not options.play.startswith(("http://", "https://")):
        parser.error("--play takes a URL, as http://127.0.0.1:8000")
    code = 1
    try:
        code = asyncio.run(run(options))
    except* BrokenPipeError:  # nobody reads any more; the interpreter's own last flush must not fail either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def fault(text: str) -> Rule:
    """The rule; argparse shows the reason to whoever wrote a wrong one."""
    try:
        return parse_rule(text)
    except FaultError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


async def run(options: argparse.Namespace) -> int:
    """Serve, and play if asked to, until a signal comes; returns the exit code."""
    keys = {name: os.environ.get(name) or default for name, default in DEFAULTS.items()}
    if options.day is None:
        calls = make_calls(options.seed, time.time(), options.only)
    else:
        calls = make_day(options.seed, time.time(), options.day, options.only)
    records = Records(calls, played=bool(options.play))
    faults = Faults(options.fault, options.seed)
    app = make_app(records, {provider: keys[f"{provider.upper()}_API_KEY"] for provider in PROVIDERS}, faults)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=2
    )
    server = Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
    try:
        listener = socket.create_server(("127.0.0.1", options.port))
    except (OSError, OverflowError) as error:
        say(f"cannot serve on port {options.port}: {error}")
        return 1
    with listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110 (uvicorn has no event to wait for)
            await asyncio.sleep(0.01)
        tell({"listening": f"http://127.0.0.1:{listener.getsockname()[1]}"})
        played = True
        if options.play:
            secrets = {
                "retell": keys["RETELL_API_KEY"],
                "cartesia": keys["CARTESIA_WEBHOOK_SECRET"],
                "ultravox": keys["ULTRAVOX_WEBHOOK_SECRET"],
            }
            playing = asyncio.create_task(play_when_ready(options.play, secrets, calls, records, options.speed, faults))
            await asyncio.wait({serving, playing}, return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                played = playing.result()
                server.should_exit = server.should_exit or not played
            else:
                playing.cancel()
        await serving
    return 0 if played else 1


async def play_when_ready(
    target: str, secrets: dict[str, str], calls: list[Call], records: Records, speed: float, faults: Faults
) -> bool:
    """Play once the target says that it is ready; False if it never did."""
    deadline = time.monotonic() + READY_WITHIN_S
    async with httpx.AsyncClient(timeout=2.0, trust_env=False) as http:
        while not await is_ready(http, target):
            if time.monotonic() > deadline:
                say(f"{target} was not ready within {READY_WITHIN_S:.0f} s (GET /readyz): nothing was played")
                return False
            await asyncio.sleep(0.2)
    played = await play(target, secrets, calls, speed=speed, show=records.show, report=tell_sent, faults=faults)
    tell({"played": played})
    return True


async def is_ready(http: httpx.AsyncClient, target: str) -> bool:
    try:
        return (await http.get(f"{target.rstrip('/')}/readyz")).is_success
    except httpx.TransportError:
        return False


def tell_sent(sent: Json) -> None:
    tell({"sent": sent})


def tell(message: Json) -> None:
    print(compact(message), flush=True)


if __name__ == "__main__":
    sys.exit(main())
