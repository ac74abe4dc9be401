"""The real stack on this machine: three servers and the processes of the Procfile.

`LocalStack` is for tests and the fault harness: every process on its own handle. `make up` and
`make down` (`python -m stacks.local up|down|status`) use the same servers but leave the processes
to honcho, in the background.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

import honcho.manager
import urllib3
from filelock import FileLock, Timeout
from honcho.environ import parse_procfile
from honcho.printer import Message, Printer
from rich.console import Console

from shared.contracts.queues import EVENTS_QUEUE, Queue
from shared.settings import SERVICES
from simulators.webhooks import webhook_variables
from stacks import provision
from stacks.processes import (
    LocalProcess,
    Ports,
    ProcessError,
    Record,
    port_taken,
    tail,
    wait_for,
    write_private,
)
from stacks.servers import Postgres, RabbitMQ, Redis, Server

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 60
STOP_SECONDS = 30
TOOL_SECONDS = 120
# What a developer may choose for `up`; the rest is the stack's own.
OPTIONAL = ("PAYMENT_GATEWAY", "LOG_FORMAT", "RATE_LIMIT_CREATE", "RATE_LIMIT_LIST", "RATE_LIMIT_DETAIL")
# A key that tokens are checked by; without one `up` asks for none, on the loopback.
KEYS = ("JWT_SECRET", "JWT_SECRET_FILE", "JWT_JWKS_URL", "JWT_JWKS_URL_FILE")
# For whoever sends more than a customer would.
UNLIMITED = {f"RATE_LIMIT_{kind}": "100000/second" for kind in ("CREATE", "LIST", "DETAIL")}


class LocalStack:
    """Real servers and application processes with everything they keep below `folder`.

    With `tied` (see LocalProcess) nothing outlives this Python process. `extra` is added to the
    application's environment.
    """

    def __init__(
        self,
        folder: Path,
        ports: Ports | None = None,
        *,
        durable: bool = True,
        tied: bool = True,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.ports = ports or Ports.free()
        self.tied = tied
        self.extra = dict(extra or {})
        options = {"durable": durable, "tied": tied}
        self.postgres = Postgres(self.folder / "postgres", self.ports.postgres, **options)
        self.redis = Redis(self.folder / "redis", self.ports.redis, **options)
        self.rabbitmq = RabbitMQ(self.folder / "rabbitmq", self.ports.rabbitmq, **options)

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


class Operator:
    """`up`, `down` and `status` of the stack below one folder."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder.absolute()
        self.console = console
        self.servers = Record(self.folder / "up" / "servers")
        self.app = Record(self.folder / "up" / "app")  # honcho, then what honcho adds: its processes

    @property
    def is_up(self) -> bool:
        expected = {"rabbitmq", "redis", "postgres", "honcho", *procfile()}
        entries = [*self.servers.entries, *self.app.entries]
        return expected <= {entry.name for entry in entries if entry.running}

    @property
    def is_partly_up(self) -> bool:
        return any(entry.running for entry in [*self.servers.entries, *self.app.entries])

    def up(self) -> None:
        """Start everything; raises with everything taken down again when a part fails."""
        if self.is_up:
            self.console.print("Already up: `make down` stops it.")
            return
        if self.is_partly_up:
            with self._step("Partly up: stopping what is left"):
                self._take_down()
        ports = Ports.chosen(os.environ)
        ports.require_free()
        extra = {name: os.environ[name] for name in (*OPTIONAL, *KEYS) if os.environ.get(name)}
        if any(name in KEYS for name in extra):
            extra["AUTH_DISABLED"] = "0"
        stack = LocalStack(self.folder, ports, tied=False, extra=extra)
        try:
            self._start(stack)
        except BaseException:  # Ctrl-C as well: nothing half started stays behind
            with self._step("Taking down what was started"):
                self._take_down()
            raise

    def down(self) -> None:
        """Stop exactly what `up` started; no effect when nothing runs."""
        if not self.is_partly_up:
            self.console.print("Nothing is up.")
            return
        with self._step("Stopping the application, then the servers"):
            self._take_down()

    def status(self, as_json: bool) -> bool:
        """Print what runs, and return whether all of it does."""
        entries = [*self.servers.entries, *self.app.entries]
        rows = [{"name": e.name, "pid": e.pid, "running": e.running} for e in entries]
        if as_json:
            print(json.dumps({"up": self.is_up, "processes": rows}))
            return self.is_up
        for row in rows:
            state = "[green]running[/]" if row["running"] else "[red]gone[/]"
            self.console.print(f"{row['name']:<14} {row['pid']:>8}  {state}", highlight=False)
        self.console.print("Up." if self.is_up else "Not up.")
        return self.is_up

    def _start(self, stack: LocalStack) -> None:
        with self._step("Looking for RabbitMQ, Redis and PostgreSQL"):
            provision.ensure(["rabbitmq", "redis", "postgres"])
        with self._step("Starting RabbitMQ, Redis and PostgreSQL"):
            stack.start_servers(self._record)
        with self._step("Migrating the databases, loading the couriers"):
            self._write_environment(stack)
            stack.prepare_databases()
        with self._step("Starting the application"):
            self._start_app(stack)
        flower = f"http://127.0.0.1:{stack.ports.flower}"
        for name, place in {"API": stack.api_url, "PSP": stack.psp_url, "Flower": flower}.items():
            self.console.print(f"  {name:<7} {place}")
        self.console.print(f"  Logs    {self.folder / 'log'}", soft_wrap=True)

    def _record(self, server: Server) -> None:
        # Ended in this order, so the last one first: the broker before its epmd.
        for process in reversed(server.processes):
            self.servers.add(process.name, process.pid, process.stop_signal)

    def _write_environment(self, stack: LocalStack) -> None:
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in stack.settings.items()]
        write_private(self.folder / "up" / "env", "".join(lines))

    def _start_app(self, stack: LocalStack) -> None:
        system_log = self.folder / "log" / "system.log"
        system_log.unlink(missing_ok=True)
        honcho = stack.process("honcho", [sys.executable, "-m", "stacks.local", "processes"])
        honcho.start()
        self.app.add(honcho.name, honcho.pid)
        waiting = list(procfile())

        def settled() -> bool:
            while waiting and stack.ready(waiting[0]):
                waiting.pop(0)
            return not waiting or _first_end(system_log) is not None

        with contextlib.suppress(ProcessError):  # what happened is told below, for one process
            wait_for(settled, READY_SECONDS, "the application", honcho)
        ended = _first_end(system_log)
        if ended or waiting or not self.is_up:
            not_ready = (waiting[0], "is not ready") if waiting else ("honcho", "ended")
            name, what = ended or not_ready
            log = self.folder / "log" / f"{name}.log"
            raise ProcessError(f"{name} {what}; the end of {log}:\n{tail(log, 15)}")

    def _take_down(self) -> None:
        # Honcho comes first and ends its own processes, within STOP_SECONDS and a moment more;
        # where it was killed they still run and are ended here.
        self.app.end(first=1, timeout=STOP_SECONDS + 5)
        self.servers.end(first=len(self.servers.entries), timeout=STOP_SECONDS)

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        with self.console.status(f"{what} …"):
            yield
        seconds = time.monotonic() - started
        self.console.print(f"[green]✓[/] {what} [dim]({seconds:.1f} s)[/]", highlight=False)


class LogFiles(Printer):  # type: ignore[misc]
    """What honcho's processes say, in a file for each; their ids go to the record."""

    def __init__(self, folder: Path) -> None:
        super().__init__(output=None)
        self.folder = folder / "log"
        self.record = Record(folder / "up" / "app")
        self.files: dict[str, BinaryIO] = {}

    def write(self, message: Message) -> None:
        """Take a line; bytes from a process, text from honcho itself."""
        data = message.data
        if isinstance(data, str) and (started := re.match(r"(\S+) started \(pid=(\d+)\)", data)):
            self.record.add(started[1], int(started[2]))
        if message.name not in self.files:
            self.files[message.name] = (self.folder / f"{message.name}.log").open("wb", 0)
        self.files[message.name].write(data.encode() if isinstance(data, str) else data)


def run_processes(folder: Path) -> int:
    """Be honcho: run the Procfile until told to stop, or until one of its processes ends."""
    honcho.manager.KILL_WAIT = STOP_SECONDS
    manager = honcho.manager.Manager(LogFiles(folder.absolute()))
    for name, command in procfile().items():
        manager.add_process(name, command, env=dict(os.environ), cwd=str(ROOT))
    manager.loop()
    return int(manager.returncode or 0)


def procfile() -> dict[str, str]:
    """The commands of the Procfile by name.

    With `exec`, since a shell that stays in between takes the signals meant for the program.
    """
    lines = parse_procfile((ROOT / "Procfile").read_text()).processes
    return {name: f"exec {command}" for name, command in lines.items()}


def main() -> int:
    """The command line; problems of use are one line, a failed process adds its log's end."""
    parser = argparse.ArgumentParser(prog="python -m stacks.local", description=__doc__)
    parser.add_argument("command", choices=["up", "down", "status", "processes"])
    parser.add_argument("--json", action="store_true", help="for status: one JSON object")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("VAR_DIR") or "var")
    if arguments.command == "processes":
        return run_processes(folder)
    operator = Operator(folder, Console())
    if arguments.command == "status":
        return 0 if operator.status(arguments.json) else 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up as Ctrl-C does
    (folder / "up").mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "up" / "lock", blocking=False):
            operator.up() if arguments.command == "up" else operator.down()
    except Timeout:
        print("Another `up` or `down` is under way: wait for its end.", file=sys.stderr)
        return 1
    except (ProcessError, provision.ProvisionError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _answers(url: str) -> bool:
    try:
        answer = urllib3.request("GET", url, timeout=2, retries=False)
    except urllib3.exceptions.HTTPError:
        return False
    return answer.status == HTTPStatus.OK


def _first_end(system_log: Path) -> tuple[str, str] | None:
    """Which process honcho saw ending first, and how."""
    text = system_log.read_text() if system_log.exists() else ""
    ended = re.search(r"(\S+) stopped \(rc=(\S+)\)", text)
    return (ended[1], f"ended with exit code {ended[2]}") if ended else None


if __name__ == "__main__":
    sys.exit(main())
