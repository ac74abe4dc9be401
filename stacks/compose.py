"""A project of docker-compose.yml with secrets, ports and volumes of its own, driven as an operator would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from stacks.local import ROOT, UNLIMITED
from stacks.processes import ProcessError, free_port

IMAGES = {"production": "waybill-test", "simulator": "waybill-test-simulator"}
#: The commands of our processes run below tini, which ends with them; servers are process 1 of their container.
SERVERS = ("rabbitmq", "redis", "postgres")
WORKERS = ("payments", "delivery", "notifications", "orders")
PROCESSES = ("gateway", "api", *WORKERS, "recorder", "beat", "flower", "psp")
_PORTS = ("PORT", "FLOWER_PORT", "RABBITMQ_MANAGEMENT_PORT", "RABBITMQ_METRICS_PORT", "PSP_PORT")
_BUILD_SECONDS = 1200
_SECONDS = 300
_LOOK_EVERY = 1.0  # seconds


class Project:
    """The fleet in containers; whatever it makes is named ``name`` or lies in ``folder``."""

    def __init__(self, name: str, folder: Path, **variables: str) -> None:
        self.name, self.folder = name, folder
        self.ports = {port: str(free_port()) for port in _PORTS}
        self.variables = {
            "JWT_ISSUER": "compose-test",
            "PSP_URL": "http://psp:9002",
            "WAYBILL_IMAGE": IMAGES["production"],
            "SECRETS_DIR": str(folder / "secrets"),
            "ENV_FILE": str(folder / "env"),
            **self.ports,
            **UNLIMITED,
            **variables,
        }

    @property
    def api_url(self) -> str:
        """Where the gateway answers."""
        return f"http://127.0.0.1:{self.ports['PORT']}"

    @property
    def psp_url(self) -> str:
        """Where the simulated provider answers."""
        return f"http://127.0.0.1:{self.ports['PSP_PORT']}"

    def prepare(self) -> None:
        """Make the secrets and the variables' file."""
        run([str(ROOT / "deploy/secrets.sh")], {**os.environ, "SECRETS_DIR": self.variables["SECRETS_DIR"]})
        lines = [f"{name}={value}\n" for name, value in self.variables.items()]
        (self.folder / "env").write_text("".join(lines))

    def secret(self, name: str) -> str:
        """Read a secret."""
        return (self.folder / "secrets" / name).read_text().strip()

    def compose(self, *arguments: str, check: bool = True) -> str:
        """Run docker-compose on the project and return what it printed; raises ``ProcessError`` when it fails."""
        files = ["-f", "docker-compose.yml", "-f", "docker-compose.dev.yml"]
        options = ["-p", self.name, "--env-file", str(self.folder / "env"), *files]
        # Nothing of the caller's environment is preferred to the file's.
        environment = {name: value for name, value in os.environ.items() if name not in self.variables}
        return run([*self._command, *options, *arguments], environment, check=check)

    def containers(self, *services: str) -> list[str]:
        """Return the containers' ids of the services, all without one."""
        return self.compose("ps", "-a", "-q", *services).split()

    def wait_healthy(self, *services: str, timeout: float = _SECONDS) -> None:
        """Wait until every container says that it is well; those that ended well count, too."""
        until = time.monotonic() + timeout
        while unwell := self._unwell(services):
            if time.monotonic() > until:
                raise ProcessError(f"not healthy within {timeout:g} s: {', '.join(unwell)}")
            time.sleep(_LOOK_EVERY)

    def crash(self, service: str) -> None:
        """Kill the processes of a service's first container, without a word to them; it is started again."""
        container = self.containers(service)[0]
        if service in SERVERS:
            run(["docker", "kill", container])
            run(["docker", "start", container])  # who is killed by this command is not restarted by itself
        else:
            script = "kill -9 $(cat /proc/1/task/1/children)"
            run(["docker", "exec", container, "sh", "-c", script], check=False)

    def restart(self, service: str) -> None:
        """Restart a service's containers, one after the other as each is well again."""
        for container in self.containers(service):
            run(["docker", "restart", "-t", "60", container])
            self.wait_healthy(service)

    def take_away(self) -> None:
        """Remove its containers, networks and volumes."""
        self.compose("--profile", "tools", "down", "-v", "-t", "5", "--remove-orphans", check=False)

    @cached_property
    def _command(self) -> list[str]:
        return ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]

    def _unwell(self, services: Iterable[str]) -> list[str]:
        states = [_state(each) for each in inspect(self.containers(*services))]
        return [state for state in states if state not in ("healthy", "exited 0")]


def build() -> None:
    """Build both images; the builder uses this machine's network and pip's settings for the package index."""
    names = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
    arguments = [part for name in names if name in os.environ for part in ("--build-arg", name)]
    for target, image in IMAGES.items():
        options = ["--network=host", "--target", target, "-t", image, *arguments]
        run(["docker", "build", "-q", *options, str(ROOT)], timeout=_BUILD_SECONDS)


def inspect(containers: Iterable[str]) -> list[dict[str, Any]]:
    """Return what Docker knows of the containers."""
    ids = list(containers)
    return list(json.loads(run(["docker", "inspect", *ids]))) if ids else []


def run(
    command: list[str], environment: Mapping[str, str] | None = None, *, check: bool = True, timeout: float = _SECONDS
) -> str:
    """Run a command in the checkout; raises ``ProcessError`` with what it said when it fails."""
    done = subprocess.run(  # noqa: S603 - fixed commands
        command,
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
    )
    if check and done.returncode:
        raise ProcessError(
            f"{' '.join(command[:3])} … {command[-1]}: exit code {done.returncode}\n{done.stdout[-4000:]}"
        )
    return done.stdout


def _state(container: Mapping[str, Any]) -> str:
    state = container["State"]
    if state["Status"] == "exited":
        return f"exited {state['ExitCode']}"
    health = state.get("Health", {}).get("Status", "without a health check")
    return str(health if health == "healthy" else f"{container['Name']} {state['Status']} {health}")
