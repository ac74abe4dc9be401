"""pytest-celery's nodes over local processes: the same API, and no container daemon is asked for.

pytest-celery talks to Docker's container object; ``LocalContainer`` is the part of that object which its nodes
use, over a child process or a server of ``stacks``.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any, ClassVar

import celery
from pytest_celery import CeleryTestContainer, CeleryTestWorker, CeleryWorkerContainer

from stacks.processes import LocalProcess, wait_for
from stacks.servers import Server

READY = 60  # seconds


class LocalContainer:
    """The part of Docker's container object that pytest-celery uses, over a process or a server."""

    attrs: ClassVar[dict[str, Any]] = {"NetworkSettings": {"Networks": {}, "Ports": {}}}

    def __init__(self, runs: LocalProcess | Server) -> None:
        self.runs = runs
        self.name = runs.name

    @property
    def process(self) -> LocalProcess:
        """The process whose log and signals these are."""
        return self.runs.process if isinstance(self.runs, Server) else self.runs

    @property
    def id(self) -> str:
        """What names this start of it."""
        return str(self.process.pid)

    @property
    def status(self) -> str:
        """Docker's words for it."""
        return "running" if self.runs.running else "exited"

    def reload(self) -> None:
        """Nothing is cached."""

    def logs(self) -> bytes:
        """All it has said, previous starts included."""
        return self.process.log.read_bytes() if self.process.log.exists() else b""

    def kill(self, name: str | None = None) -> None:
        """Send a signal; SIGKILL, the default, ends its children too and is waited for."""
        wanted = signal.Signals[name or "SIGKILL"]
        if wanted == signal.SIGKILL:
            self.runs.kill()
        elif self.process.pid:
            os.kill(self.process.pid, wanted)

    def restart(self, timeout: float) -> None:
        """End it in an orderly way and start it again."""
        self.runs.stop(timeout)
        self.runs.start()


class ProcessContainer(CeleryTestContainer):
    """A process that is ready when ``condition`` holds."""

    def __init__(self, runs: LocalProcess | Server, condition: Callable[[], bool], **config: str) -> None:
        self._container = LocalContainer(runs)
        self._condition = condition
        self._config = config

    @property
    def process(self) -> LocalProcess:
        """The process."""
        return self._container.process

    @property
    def celeryconfig(self) -> dict[str, str]:
        """What Celery is to be told about it."""
        return self._config

    def start(self) -> None:
        """Start it again after a kill."""
        self._container.runs.start()

    def teardown(self) -> None:
        """End a process in an orderly way; the servers are the session's."""
        if isinstance(self._container.runs, LocalProcess):
            self._container.runs.stop()

    def _wait_ready(self, timeout: int = READY) -> bool:
        wait_for(self._condition, timeout, f"{self.name} is not ready", self.process)
        return True


class WorkerContainer(ProcessContainer, CeleryWorkerContainer):
    """A service's worker."""

    def version(self) -> str:  # type: ignore[override]  # one class serves every service
        """The version of Celery that it runs."""
        return str(celery.__version__)

    def worker_name(self) -> str:  # type: ignore[override]
        """The part of its name before the ``@``."""
        return str(self.name)

    def worker_queue(self) -> str:  # type: ignore[override]
        """The queue that it serves."""
        return str(self.name)


class LocalWorker(CeleryTestWorker):
    """A worker node that names itself as ``-n service@%h`` does."""

    def hostname(self) -> str:
        """The name under which it answers to remote control."""
        return f"{self.worker_name}@{socket.gethostname()}"
