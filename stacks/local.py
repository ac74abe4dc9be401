"""The real stack on this machine: three servers and the processes of the Procfile.

For tests and the fault harness every process is on its own handle; `make up` (stacks.up) uses the same servers but
leaves the processes to honcho.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import urllib3
from honcho.environ import parse_procfile

from shared.contracts.queues import EVENTS_QUEUE, Queue
from shared.settings import SERVICES
from simulators.webhooks import webhook_variables
from stacks import provision
from stacks.processes import (
    LocalProcess,
    Ports,
    ProcessError,
    port_taken,
    wait_for,
)
from stacks.servers import Postgres, RabbitMQ, Redis, Server

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 60
TOOL_SECONDS = 120
# A key that tokens are checked by; without one `up` asks for none, on the loopback.
KEYS = ("JWT_SECRET", "JWT_SECRET_FILE", "JWT_JWKS_URL", "JWT_JWKS_URL_FILE")
# For whoever sends more than a customer would.
UNLIMITED = {f"RATE_LIMIT_{kind}": "100000/second" for kind in ("CREATE", "LIST", "DETAIL")}


class LocalStack:
    """Real servers and application processes with everything they keep below `folder`.

    With `tied` (see LocalProcess) nothing outlives this Python process. With `management` RabbitMQ runs its
    management plugin, which Flower reads the queues from. `extra` is added to the application's environment.
    """

    def __init__(
        self,
        folder: Path,
        ports: Ports | None = None,
        *,
        durable: bool = True,
        tied: bool = True,
        management: bool = False,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.ports = ports or Ports.free()
        self.tied = tied
        self.extra = dict(extra or {})
        options = {"durable": durable, "tied": tied}
        self.postgres = Postgres(self.folder / "postgres", self.ports.postgres, **options)
        self.redis = Redis(self.folder / "redis", self.ports.redis, **options)
        self.management_port = self.ports.management if management else None
        self.rabbitmq = RabbitMQ(
            self.folder / "rabbitmq", self.ports.rabbitmq, management_port=self.management_port, **options
        )

    @property
    def servers(self) -> list[Server]:
        return [self.rabbitmq, self.postgres, self.redis]

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.api}"

    @property
    def psp_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.psp}"

    @functools.cached_property
    def settings(self) -> dict[str, str]:
        """The variables of design section 7 with which a process joins this stack."""
        databases = {f"{s.upper()}_DATABASE_URL": self.postgres.url(s) for s in SERVICES}
        return {
            "VAR_DIR": str(self.folder),
            "BROKER_URL": self.rabbitmq.url,
            "REDIS_URL": self.redis.url,
            **databases,
            "PAYMENT_GATEWAY": "simulator",
            "PSP_URL": self.psp_url,
            **webhook_variables(self.api_url),
            "AUTH_DISABLED": "1",
            "LOG_FORMAT": "json",
            "PORT": str(self.ports.api),
            "FLOWER_PORT": str(self.ports.flower),
            **({"FLOWER_BROKER_API": self.rabbitmq.management_url} if self.management_port else {}),
            **self.extra,
        }

    @functools.cached_property
    def environment(self) -> dict[str, str]:
        """The whole environment of an application process: ours over the caller's."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        callers = {name: value for name, value in os.environ.items() if name not in KEYS}
        return {**callers, **self.settings, "PATH": path, "PYTHONUNBUFFERED": "1"}

    @functools.cached_property
    def processes(self) -> dict[str, LocalProcess]:
        """The Procfile's processes by name, not started yet."""
        return {name: self.process(name, ["/bin/sh", "-c", command]) for name, command in procfile().items()}

    def process(self, name: str, command: list[str]) -> LocalProcess:
        """A process of the application that is not in the Procfile, not started yet."""
        log = self.folder / "log" / f"{name}.log"
        return LocalProcess(name, command, log=log, environment=self.environment, cwd=ROOT, tied=self.tied)

    def start_servers(self, started: Callable[[Server], None] | None = None) -> None:
        """Start the servers, wait until they answer and create the services' databases.

        `started` is called with each as soon as its processes run.
        """
        provision.ensure(["rabbitmq", "redis", "postgres"])
        for server in self.servers:
            server.start()
            if started:
                started(server)
        for server in self.servers:
            server.wait_ready()
        self.postgres.create_databases(SERVICES)

    def prepare_databases(self) -> None:
        """Bring every database to the newest schema and load the couriers; may run again."""
        alembic = [sys.executable, "-m", "alembic"]
        migrations = {f"migrate-{s}": [*alembic, "-n", s, "upgrade", "head"] for s in SERVICES}
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.run, migrations, migrations.values()))
        roster = [sys.executable, "-m", "workers.delivery.roster", "deploy/couriers.json"]
        self.run("roster", roster)

    def run(self, name: str, command: list[str], timeout: float = TOOL_SECONDS) -> None:
        """Run a tool to its end; raises ProcessError with the log's end unless it succeeds."""
        process = self.process(name, command)
        process.start()
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        if code != 0:
            end = "did not end" if code is None else f"failed with exit code {code}"
            raise ProcessError(f"{name} {end}; the end of {process.log}:\n{process.log_tail()}")

    def start_app(self, names: Collection[str] | None = None) -> None:
        """Start processes of the Procfile (default: all) and wait until they do their work."""
        chosen = [self.processes[name] for name in names or self.processes]
        for process in chosen:
            process.start()
        for process in chosen:
            what = f"{process.name} is not ready"
            wait_for(functools.partial(self.ready, process.name), READY_SECONDS, what, process)

    def ready(self, name: str) -> bool:
        """Whether the Procfile's process answers or consumes; beat does neither, so it is."""
        match name:
            case "api":
                return _answers(f"{self.api_url}/health/")
            case "psp":
                return _answers(f"{self.psp_url}/health")
            case "flower":
                return port_taken(self.ports.flower)
            case "recorder":
                return self.rabbitmq.consumers(EVENTS_QUEUE) > 0
            case _:
                return name not in set(Queue) or self.rabbitmq.consumers(name) > 0

    def stop(self) -> None:
        """End the application, then the servers."""
        running = list(self.processes.values())
        with ThreadPoolExecutor(len(running)) as pool:
            list(pool.map(LocalProcess.stop, running))
        for server in self.servers:
            server.stop()


def procfile() -> dict[str, str]:
    """The commands of the Procfile by name.

    With `exec`, since a shell that stays in between takes the signals meant for the program.
    """
    lines = parse_procfile((ROOT / "Procfile").read_text()).processes
    return {name: f"exec {command}" for name, command in lines.items()}


def _answers(url: str) -> bool:
    try:
        answer = urllib3.request("GET", url, timeout=2, retries=False)
    except urllib3.exceptions.HTTPError:
        return False
    return answer.status == HTTPStatus.OK
