"""`make up` and `make down` (`python -m stacks.up up|down|status`): the real stack, left to honcho."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import honcho.manager
from filelock import FileLock, Timeout
from honcho.printer import Message, Printer
from rich.console import Console

from stacks import provision
from stacks.local import KEYS, READY_SECONDS, ROOT, LocalStack, procfile
from stacks.processes import Ports, ProcessError, Record, tail, wait_for, write_private
from stacks.servers import Server

STOP_SECONDS = 30
# What a developer may choose for `up`; the rest is the stack's own.
OPTIONAL = ("PAYMENT_GATEWAY", "LOG_FORMAT", "RATE_LIMIT_CREATE", "RATE_LIMIT_LIST", "RATE_LIMIT_DETAIL")


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
        stack = LocalStack(self.folder, ports, tied=False, management=True, extra=extra)
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
        honcho = stack.process("honcho", [sys.executable, "-m", "stacks.up", "processes"])
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


def main() -> int:
    """The command line; problems of use are one line, a failed process adds its log's end."""
    parser = argparse.ArgumentParser(prog="python -m stacks.up", description=__doc__)
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


def _first_end(system_log: Path) -> tuple[str, str] | None:
    """Which process honcho saw ending first, and how."""
    text = system_log.read_text() if system_log.exists() else ""
    ended = re.search(r"(\S+) stopped \(rc=(\S+)\)", text)
    return (ended[1], f"ended with exit code {ended[2]}") if ended else None


if __name__ == "__main__":
    sys.exit(main())
