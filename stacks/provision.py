"""Finds the server programs, and installs Debian's packages where that is possible.

Installing never starts a system service: a temporary `policy-rc.d` forbids it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock

PACKAGES = {
    "rabbitmq": "rabbitmq-server",
    "redis": "redis-server",
    "postgres": "postgresql",
}
EXECUTABLES = {
    "rabbitmq": ("rabbitmq-server", "rabbitmqctl", "epmd"),
    "redis": ("redis-server",),
    "postgres": ("initdb", "postgres"),
}
# Searched before PATH: what PATH finds for RabbitMQ is Debian's wrapper, which switches the user.
FOLDERS = ("/usr/lib/rabbitmq/bin", "/usr/lib/postgresql/*/bin", "/usr/sbin")
APT_LOCK_SECONDS = 300
LOCK_FILE = Path("/run/waybill-provision.lock")
POLICY_FILE = Path("/usr/sbin/policy-rc.d")
POLICY = "#!/bin/sh\n# Temporary, written by waybill: no service starts while it installs.\nexit 101\n"


class ProvisionError(Exception):
    """A server program is missing and could not be installed; the text is one line."""


def find(executable: str) -> Path | None:
    """The program's path (the newest version where there are several), or None."""
    for pattern in FOLDERS:
        found = [path for path in _expand(f"{pattern}/{executable}") if os.access(path, os.X_OK)]
        if executable == "rabbitmq-server" and pattern == "/usr/sbin":
            continue
        if found:
            return max(found, key=_version)
    on_path = shutil.which(executable)
    return Path(on_path) if on_path else None


def executable(name: str) -> Path:
    """As `find`, for a program that has to be there; raises ProvisionError."""
    path = find(name)
    if path is None:
        server = next((key for key, names in EXECUTABLES.items() if name in names), None)
        raise ProvisionError(_hint(name, [PACKAGES[server]] if server else [name]))
    return path


def ensure(names: Iterable[str]) -> None:
    """Make the servers "rabbitmq", "redis", "postgres" startable.

    Installs Debian's packages when it is root on such a system; raises ProvisionError otherwise.
    """
    wanted = list(names)
    if not _missing(wanted):
        return
    if can_install():
        with FileLock(LOCK_FILE):
            _install([PACKAGES[name] for name in _missing(wanted)])
    missing = _missing(wanted)
    for executables in missing.values():
        raise ProvisionError(_hint(executables[0], [PACKAGES[name] for name in missing]))


def can_install() -> bool:
    """Whether this process is root on a system with apt-get."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def _missing(names: list[str]) -> dict[str, list[str]]:
    """The programs not found, by server."""
    gaps = {name: [e for e in EXECUTABLES[name] if find(e) is None] for name in names}
    return {name: executables for name, executables in gaps.items() if executables}


def _hint(program: str, packages: list[str]) -> str:
    command = f"apt-get install --no-install-recommends {' '.join(packages)}"
    return f"{program} not found on PATH or in {', '.join(FOLDERS)}: install it (as root: {command})"


def _install(packages: list[str]) -> None:
    if not packages:  # another process installed them while this one waited for the lock
        return
    names = " ".join(packages)
    print(f"Installing {names} with apt-get; system services stay off.", file=sys.stderr, flush=True)
    with _services_forbidden():
        # A failed update is no reason to stop: the lists at hand may be good enough.
        _apt_get("update")
        done = _apt_get("install", "--yes", "--no-install-recommends", *packages)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ProvisionError(f"apt-get could not install {names}: {reason}")


def _apt_get(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run apt-get, waiting for the locks another apt-get holds.

    `DPkg::Lock::Timeout` covers installing; `update` fails at once on the lists' lock: ask again.
    """
    options = ("--quiet", "--option", f"DPkg::Lock::Timeout={APT_LOCK_SECONDS}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    deadline = time.monotonic() + APT_LOCK_SECONDS
    while True:
        done = subprocess.run(  # noqa: S603 - fixed program, names from the table above
            ["apt-get", *options, *arguments],  # noqa: S607
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if "Could not get lock" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


@contextlib.contextmanager
def _services_forbidden() -> Iterator[None]:
    """Forbid service starts by a policy-rc.d, unless the system has one of its own."""
    ours = POLICY_FILE.is_file() and POLICY_FILE.read_text() == POLICY  # left by a killed run
    if not ours and not POLICY_FILE.exists():
        POLICY_FILE.write_text(POLICY)
        POLICY_FILE.chmod(0o755)
        ours = True
    try:
        yield
    finally:
        if ours:
            POLICY_FILE.unlink(missing_ok=True)


def _expand(pattern: str) -> list[Path]:
    return list(Path("/").glob(pattern.lstrip("/")))


def _version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path.parent))]
