"""A PostgreSQL server of the test's own."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.servers import a_certificate, free_port, need


class PostgresServer:
    """Takes every user but those of `wants_password` without a password. It runs as postgres where the test is root."""

    def __init__(self, *settings: str) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
        program = str(found[-1]) if found else "postgres"  # Debian keeps it out of the PATH
        need(program, "postgresql")
        self._programs = Path(shutil.which(program) or program).parent
        self._settings = settings
        # Not below pytest's own directory, into which no other user may look.
        self.directory = Path(tempfile.mkdtemp(prefix="aftercall-postgres-"))
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # which it refuses to run as
            shutil.chown(self.directory, "postgres", "postgres")
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "--pgdata", "data", "--auth", "trust", "--username", "owner", "--encoding", "UTF8", "--no-sync"
        )

    def url(self, user: str = "owner", database: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def make_certificate(self) -> Path:
        """For a name that is not the server's; used once `ssl` is switched on."""
        key, certificate = a_certificate(self.directory)
        if self._user:
            shutil.chown(key, "postgres", "postgres")
        return Path(certificate)

    def wants_password(self, user: str) -> None:
        """From the next start on."""
        rules = self.directory / "data/pg_hba.conf"
        rules.write_text(f"host all {user} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")

    def start(self) -> None:
        self.process = self._spawned()
        deadline = time.monotonic() + 30
        asked = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(asked, check=False).returncode:
            assert time.monotonic() < deadline, (self.directory / "log").read_text()
            time.sleep(0.02)
            if self.process.poll() is not None:  # it refuses while a child of the killed one still dies
                self.process = self._spawned()

    def _spawned(self) -> "subprocess.Popen[bytes]":
        certificate = ("ssl_key_file=../key.pem", "ssl_cert_file=../certificate.pem")
        ours = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", *certificate)
        options = [part for setting in (*ours, *self._settings) for part in ("-c", setting)]
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [self._programs / "postgres", "-D", "data", "-p", str(self.port), *options],
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._user,
            )

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """With all that it runs, as a crash of the machine does; what was committed is there after the next start."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self._signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.directory)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def _run(self, program: str, *arguments: str) -> None:
        command = [self._programs / program, *arguments]
        subprocess.run(command, check=True, cwd=self.directory, capture_output=True, **self._user)
