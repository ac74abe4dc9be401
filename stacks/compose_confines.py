"""What a container of the fleet must not be able to do, looked up and tried from inside."""

from collections.abc import Iterator, Mapping
from typing import Any

from stacks.compose import SERVERS, WORKERS, Project, inspect, run

_LOOPBACK = "127.0.0.1"
# Takes its own URL to another's database; says what came of it.
_INTRUDE = """
import sys, psycopg2
own, other = open(f"/run/secrets/{sys.argv[1]}_database_url").read().strip(), sys.argv[2]
try:
    psycopg2.connect(own.replace("+psycopg2", "").rpartition("/")[0] + "/" + other, connect_timeout=5)
    print("connected")
except psycopg2.OperationalError as error:
    print(error)
"""


def breaches(project: Project) -> list[str]:
    """Return a line for each limit that does not hold."""
    return [*_of_containers(project), *_of_databases(project)]


def _of_containers(project: Project) -> Iterator[str]:
    for container in inspect(project.containers()):
        name, host = container["Name"].strip("/"), container["HostConfig"]
        service = container["Config"]["Labels"]["com.docker.compose.service"]
        wanted = {
            "its root file system can be written": host["ReadonlyRootfs"],
            "it has further capabilities": not host["CapAdd"],
            "its memory has no limit": host["Memory"] > 0,
            "it may gain privileges": "no-new-privileges:true" in host["SecurityOpt"],
            "it is not restarted": service == "setup" or host["RestartPolicy"]["Name"] == "unless-stopped",
            "it listens beyond the loopback": all(port == _LOOPBACK for port in _addresses(host)),
            "it runs as root": service in SERVERS or container["Config"]["User"] not in ("", "root", "0"),
            "it keeps capabilities": service in SERVERS or host["CapDrop"] == ["ALL"],
        }
        yield from (f"{name}: {what}" for what, held in wanted.items() if not held)


def _addresses(host: Mapping[str, Any]) -> list[str]:
    return [each["HostIp"] for bindings in (host["PortBindings"] or {}).values() for each in bindings]


def _of_databases(project: Project) -> Iterator[str]:
    for service in WORKERS:
        container = project.containers(service)[0]
        for other in (*WORKERS, "postgres", "template1"):
            said = run(["docker", "exec", container, "python", "-c", _INTRUDE, service, other])
            if ("permission denied" in said) == (service == other):
                yield f"{service} at the database {other}: {said.strip()}"
