"""RabbitMQ of another version: the broker in a container of its image, everything else as in ``servers``.

The container shares this machine's network and the server's folder, so ports, data and configuration are where those of
an installed broker would be. Needs Docker, and root to signal what runs in the container.
"""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from stacks.processes import LocalProcess, poll, run_tool
from stacks.servers import RabbitMQ

_HERE = ("/opt/rabbitmq/sbin", "/usr/lib/rabbitmq/bin")  # the official image's place, and Debian's
_START = 60  # seconds


class ContainerProcess(LocalProcess):
    """A container in the foreground: what is started is the client, what is signalled is the program inside."""

    def __init__(self, container: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.container = container
        self._inside: int | None = None

    @property
    def pid(self) -> int | None:
        """The id of the program in the container, as this machine sees it."""
        return self._inside if self.running else None

    def start(self) -> None:
        """Start it, and wait until it has an id."""
        if self.running:
            return
        _docker("rm", "-f", self.container)
        super().start()
        poll(lambda: bool(self._look()) or not self.running, _START)

    def stop(self, timeout: float = 30) -> None:
        """Ask the program to end; after ``timeout`` seconds kill it."""
        if (pid := self.pid) is not None:
            os.kill(pid, self.stop_signal)
            poll(lambda: not self.running, timeout)
        self.kill()

    def kill(self) -> None:
        """End the program at once, and what is left of the container."""
        if self._inside is not None:
            _docker("kill", self.container)
            poll(lambda: not self.running, _START)
            self._inside = None
        super().kill()
        _docker("rm", "-f", self.container)

    def _look(self) -> int:
        said = _docker("inspect", "-f", "{{.State.Pid}}", self.container).strip()
        self._inside = int(said) if said.isdecimal() and int(said) else None
        return self._inside or 0


class ContainerRabbitMQ(RabbitMQ):
    """A broker out of ``image``."""

    def __init__(self, folder: Path, port: int | None = None, *, image: str, **options: Any) -> None:
        super().__init__(folder, port, **options)
        self.image = image
        self.container = f"waybill-rabbitmq-{self.port}"

    def ctl(self, *arguments: str) -> str:
        """What the image's own rabbitmqctl prints: it has to be of the broker's version."""
        command: list[str | Path] = ["docker", "exec", self.container, *_program("rabbitmqctl"), "--quiet", *arguments]
        return run_tool(command, os.environ, self.folder)

    def _prepare(self) -> list[LocalProcess]:
        *others, local = super()._prepare()
        options = ["--rm", "--name", self.container, "--network=host", "--user=0", "-v", f"{self.folder}:{self.folder}"]
        for name, value in self._environment().items():
            if name != "PATH":
                options += ["-e", f"{name}={value}"]
        broker = partial(ContainerProcess, self.container, self.name, log=local.log, cwd=self.folder, tied=self.tied)
        command = ["docker", "run", *options, "--entrypoint", "env", self.image, *_program("rabbitmq-server")]
        return [*others, broker(command)]


def _program(name: str) -> list[str]:
    """A program of RabbitMQ wherever the image has it, past Debian's wrapper, which would change the user."""
    return ["sh", "-c", f'for d in {" ".join(_HERE)}; do [ -x $d/{name} ] && exec $d/{name} "$@"; done', name]


def _docker(*arguments: str) -> str:
    """What docker says; nothing when it fails, as for a container that is gone."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout
