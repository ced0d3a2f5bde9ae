"""A RabbitMQ server that a test may kill and start again, with what it has stored."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.servers import free_port, need
from tests.servers.nats import answers, until_it_answers

# Debian's command changes to the user rabbitmq, who may not read a test's directory; this is what it runs.
BEHIND_DEBIANS = "/usr/lib/rabbitmq/bin/rabbitmq-server"
MAX_MESSAGE_BYTES = 4_000_000


class RabbitServer:
    """A node of its own, with an epmd of its own, without plug-ins. Its user is guest."""

    def __init__(self, directory: Path) -> None:
        need("rabbitmq-server", "rabbitmq-server")
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self._names = free_port()  # where epmd says which node has which port
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def _environment(self) -> dict[str, str]:
        (self.directory / "rabbitmq.conf").write_text(f"max_message_size = {MAX_MESSAGE_BYTES}\n")
        (self.directory / "enabled_plugins").write_text("[].")
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),  # the nodes' cookie
            "ERL_EPMD_PORT": str(self._names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"calls{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "data"),
            "RABBITMQ_LOG_BASE": str(self.directory),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none",
        }

    def start(self) -> None:
        environment = self._environment()
        self._epmd = self._epmd or subprocess.Popen(["epmd", "-port", str(self._names)], env=environment)
        script = BEHIND_DEBIANS if Path(BEHIND_DEBIANS).exists() else shutil.which("rabbitmq-server")
        assert script is not None
        with (self.directory / "output").open("wb") as output:
            self._server = subprocess.Popen(
                [script], env=environment, stdout=output, stderr=output, start_new_session=True, cwd=self.directory
            )
        until_it_answers(self.port, within_s=60)

    def kill(self) -> None:
        """The node and what it started."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
            self._server = None
            while answers(self.port):  # the node goes a moment after the script that waited for it
                time.sleep(0.01)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
