"""`python -m aftercall.testing [PORT]`: a destination on loopback that takes every request, and prints it."""

import argparse
import asyncio
import signal
import sys

from aftercall.testing.destination import Answer, Destination, Sent


def show(sent: Sent) -> Answer:
    """Print the request; take it."""
    sys.stdout.write(f"{sent.method} {sent.path}\n{sent.body.decode('utf-8', 'backslashreplace')}\n\n")
    sys.stdout.flush()
    return Answer(200, {"id": "1"})


async def serve(port: int) -> None:
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT also where a shell that put us aside had it ignored
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    destination = Destination(port)
    destination.answers = show
    await destination.start()
    sys.stderr.write(f"{destination.url} takes whatever is sent there, and forgets it. Press Ctrl-C to stop.\n")
    try:
        await over.wait()
    finally:
        await destination.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m aftercall.testing", description=__doc__)
    parser.add_argument("port", nargs="?", type=int, default=9000, help="where to listen; default: 9000")
    asyncio.run(serve(parser.parse_args().port))
