"""Child processes that can be stopped, killed and restarted; the ports they listen on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

POLL_SECONDS = 0.05
TOOL_SECONDS = 60
# Below the range from which Linux takes the local ports of outgoing connections (32768 and up):
# otherwise a client could hold a server's port while that server restarts.
PORTS = range(12000, 22000)
_random = random.SystemRandom()  # two test runs with the same seed must not take the same ports


class ProcessError(Exception):
    """A process ended or did not get ready; the text ends with the tail of its log."""


class LocalProcess:
    """A child process, its whole process group and its log.

    With `tied` the group is killed when this Python process ends in whatever way, as tests want;
    without it the child lives on. `environment` is the child's whole environment, None inherits.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        tied: bool = False,
    ) -> None:
        self.name = name
        self.command = [str(part) for part in command]
        self.log = log
        self.environment = environment
        self.cwd = cwd
        self.stop_signal = stop_signal
        self.tied = tied
        self._child: subprocess.Popen[bytes] | None = None
        self._lifeline: tuple[subprocess.Popen[bytes], int] | None = None

    @property
    def pid(self) -> int | None:
        """The id of the child started last, None before the first start and after its end."""
        return self._child.pid if self._child else None

    @property
    def running(self) -> bool:
        return self._child is not None and not _exited(self._child.pid)

    def start(self) -> None:
        """Start the child; its output is appended to the log. No effect on a running one."""
        if self.running:
            return
        self.kill()  # what a predecessor that died left in its group
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(  # noqa: S603 - commands come from this package
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environment) if self.environment is not None else None,
                cwd=self.cwd,
                start_new_session=True,
            )
        if self.tied:
            self._lifeline = _tie(self._child.pid)

    def wait(self, timeout: float) -> int | None:
        """The exit code (negative: a signal) of the ended child, None after `timeout` seconds."""
        if self._child is None or not poll(lambda: not self.running, timeout):
            return None
        return self._child.wait()

    def stop(self, timeout: float = 30) -> None:
        """Ask the child to end; after `timeout` seconds kill its whole group."""
        if self._child is None:
            return
        pid = self._child.pid
        if self.running:
            os.kill(pid, self.stop_signal)
            poll(lambda: _exited(pid), timeout)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the child and all it started, and wait until nothing of it runs."""
        if self._child is None:
            return
        # The child has not been reaped yet, so its id cannot belong to anyone else.
        kill_family(self._child.pid)
        self._child.wait()
        self._child = None
        self._untie()

    def restart(self, timeout: float = 30) -> None:
        self.stop(timeout)
        self.start()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the log, "" when there is none."""
        return tail(self.log, lines)

    def _untie(self) -> None:
        if self._lifeline is None:
            return
        guard, write_end = self._lifeline
        guard.kill()
        guard.wait()
        os.close(write_end)
        self._lifeline = None


@dataclass(frozen=True)
class Entry:
    """A process that outlives its starter. Id and start time together are never used again."""

    name: str
    pid: int
    ticks: int
    signal: int

    @property
    def running(self) -> bool:
        return start_ticks(self.pid) == self.ticks


class Record:
    """Processes that outlive their starter, in a file, so that exactly these can be ended later."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def entries(self) -> list[Entry]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [Entry(**json.loads(line)) for line in lines]

    def add(self, name: str, pid: int | None, stop_signal: int = signal.SIGTERM) -> None:
        """Append a process; one that is gone already is left out."""
        ticks = start_ticks(pid) if pid else None
        if pid and ticks:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(Entry(name, pid, ticks, stop_signal))) + "\n")

    def end(self, first: int, timeout: float) -> None:
        """End the `first` processes one after the other, then the rest together; forget them all.

        Each is asked to end, and killed with what it started after `timeout` seconds.
        """
        entries = self.entries
        for entry in entries[:first]:
            _end([entry], timeout)
        _end(entries[first:], timeout)
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Ports:
    """Where the stack listens, on the loopback. RabbitMQ takes the two after its own as well.

    The servers' defaults are neither theirs (a system's server keeps running) nor from the range
    of outgoing connections, which could take them while a server restarts.
    """

    rabbitmq: int = 20672
    redis: int = 20379
    postgres: int = 20432
    api: int = 8000
    psp: int = 9002
    flower: int = 5555
    management: int = 20675

    VARIABLES: ClassVar[Mapping[str, str]] = {
        "rabbitmq": "UP_RABBITMQ_PORT",
        "redis": "UP_REDIS_PORT",
        "postgres": "UP_POSTGRES_PORT",
        "api": "PORT",
        "psp": "UP_PSP_PORT",
        "flower": "FLOWER_PORT",
        "management": "UP_MANAGEMENT_PORT",
    }

    @classmethod
    def free(cls) -> Self:
        """Others that are free now."""
        names = [name for name in cls.VARIABLES if name != "rabbitmq"]
        first = free_port(3 + len(names))
        return cls(rabbitmq=first, **{name: first + 3 + i for i, name in enumerate(names)})

    @classmethod
    def chosen(cls, environment: Mapping[str, str]) -> Self:
        """The defaults, changed by variables; raises ProcessError for one that is no port."""
        values = {n: environment[v] for n, v in cls.VARIABLES.items() if environment.get(v)}
        for name, value in values.items():
            if not value.isdecimal() or not 0 < int(value) < 65534:
                raise ProcessError(f"{cls.VARIABLES[name]}={value} is no port: set it to 1 to 65533")
        return cls(**{name: int(value) for name, value in values.items()})

    def require_free(self) -> None:
        """Raise ProcessError with the variable to change for the first port that is taken."""
        for name, port in asdict(self).items():
            for each in range(port, port + (3 if name == "rabbitmq" else 1)):
                if port_taken(each):
                    hint = f"set {self.VARIABLES[name]} to another port or end what listens there"
                    raise ProcessError(f"port {each} (for {name}) is taken: {hint}")


def free_port(count: int = 1) -> int:
    """The first of `count` neighbouring ports of the loopback that nobody listens on."""
    for _ in range(200):
        first = _random.choice(PORTS)
        if not any(port_taken(port) for port in range(first, first + count)):
            return first
    raise ProcessError(f"no free port between {PORTS.start} and {PORTS.stop}: end what holds them")


def port_taken(port: int) -> bool:
    """Whether the loopback's `port` cannot be bound, as a server would bind it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def poll(condition: Callable[[], bool], timeout: float) -> bool:
    """Whether `condition` came true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(POLL_SECONDS)
    return True


def wait_for(
    condition: Callable[[], bool],
    timeout: float,
    what: str,
    process: LocalProcess | None = None,
) -> None:
    """Wait until `condition` holds; raises ProcessError naming `what` after `timeout` seconds.

    With `process`, waiting ends when that process does, and the error ends with its log.
    """

    def settled() -> bool:
        return (process is not None and not process.running) or condition()

    in_time = poll(settled, timeout)
    if in_time and (process is None or process.running):
        return
    reason = f"not within {timeout:g} s" if not in_time else "its process ended"
    log = f"; the end of {process.log}:\n{process.log_tail()}" if process else ""
    raise ProcessError(f"{what}: {reason}{log}")


def run_tool(command: list[str | Path], environment: Mapping[str, str], cwd: Path) -> str:
    """Run a tool and return its output; raises ProcessError with the last line it said."""
    done = subprocess.run(  # noqa: S603 - commands come from this package
        command,
        env=dict(environment),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=TOOL_SECONDS,
    )
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ProcessError(f"{Path(command[0]).name}: {lines[-1] if lines else done.returncode}")
    return done.stdout


def write_private(path: Path, text: str) -> None:
    """Write a file, whole or not at all, that from its first byte on only its owner reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)


def tail(log: Path, lines: int) -> str:
    """The last `lines` lines of a file, "" when it is missing."""
    if not log.is_file():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def start_ticks(pid: int) -> int | None:
    """When the process started (clock ticks since boot), None when it is gone or a zombie.

    Together with the id it names one process for good: ids are used again, this pair is not.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def kill_family(pid: int) -> None:
    """SIGKILL to a process, its group and its descendants; returns when none of them runs.

    The group is not enough: PostgreSQL's backends are sessions of their own.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # starts nothing more while we look
    family = {member: start_ticks(member) for member in _family(pid)}
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    poll(lambda: not any(t and start_ticks(m) == t for m, t in family.items()), timeout=10)


def _family(pid: int) -> set[int]:
    """The live processes that are `pid`, of its group, or descend from one of these."""
    ids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    stats = {each: fields for each in ids if (fields := _stat(each)) and fields[0] not in "ZX"}
    found = {each for each, fields in stats.items() if pid in (each, int(fields[2]))}
    while more := {e for e, f in stats.items() if e not in found and int(f[1]) in found}:
        found |= more
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat from the third (the state) on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _end(entries: list[Entry], timeout: float) -> None:
    for entry in entries:
        if entry.running:
            os.kill(entry.pid, entry.signal)
    poll(lambda: not any(entry.running for entry in entries), timeout)
    for entry in entries:
        if entry.running:
            kill_family(entry.pid)


def _exited(pid: int) -> bool:
    """Whether our child has ended, without reaping it: its id stays taken until we are done."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _tie(group: int) -> tuple[subprocess.Popen[bytes], int]:
    """A guard that kills `group` when this process ends, and the pipe it listens to.

    The kernel's PR_SET_PDEATHSIG would do it for the child only, not for its children, and
    fires when the starting *thread* ends.
    """
    read_end, write_end = os.pipe()
    guard = subprocess.Popen(  # noqa: S603
        ["/bin/sh", "-c", f"read -r _; kill -s KILL -- -{group}"],
        stdin=read_end,
        start_new_session=True,
    )
    os.close(read_end)
    return guard, write_end
