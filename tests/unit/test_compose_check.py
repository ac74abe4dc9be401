"""What `make compose-test` would notice: an answer that no client should see, and a container with too many rights."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import urllib3

from stacks import compose_confines, compose_load
from stacks.compose import Project
from stacks.compose_load import Client

LATER = urllib3.HTTPResponse(status=503, headers={"Retry-After": "1"})
TAKEN = urllib3.HTTPResponse(status=202, body=b'{"id": "o-1"}', headers={"Content-Type": "application/json"})
CONFINED: dict[str, Any] = {
    "Name": "/fleet_payments_1",
    "Config": {"User": "waybill", "Labels": {"com.docker.compose.service": "payments"}},
    "HostConfig": {
        "ReadonlyRootfs": True,
        "CapAdd": None,
        "CapDrop": ["ALL"],
        "Memory": 1,
        "SecurityOpt": ["no-new-privileges:true"],
        "RestartPolicy": {"Name": "unless-stopped"},
        "PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8000"}]},
    },
}
LOOSE = {
    "ReadonlyRootfs": False,
    "CapAdd": ["SYS_ADMIN"],
    "CapDrop": None,
    "Memory": 0,
    "SecurityOpt": [],
    "RestartPolicy": {"Name": "no"},
    "PortBindings": {"8000/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8000"}]},  # noqa: S104 - what is looked for
}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    """A client that never pauses."""
    monkeypatch.setattr(compose_load.time, "sleep", lambda _: None)
    return Client("http://fleet", "s" * 32, "tests")


def answer(client: Client, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[dict[str, str]]:
    """Have the fleet answer so; return the headers that were sent."""
    coming: Iterator[Any] = iter(answers)
    sent: list[dict[str, str]] = []

    def request(_method: str, _url: str, headers: dict[str, str], **_: Any) -> Any:
        sent.append(headers)
        found = next(coming)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(client._http, "request", request)
    return sent


def test_being_told_to_try_later_is_no_error(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is sent again under its key."""
    sent = answer(client, monkeypatch, LATER, LATER, TAKEN)
    assert client.place(1) == "o-1"
    assert client.errors == []
    assert len({headers["Idempotency-Key"] for headers in sent}) == 1


@pytest.mark.parametrize("status", [400, 401, 429, 500, 502, 503, 504])
def test_any_other_refusal_is_an_error(client: Client, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """503 too, where it does not say when to try again."""
    answer(client, monkeypatch, urllib3.HTTPResponse(status=status, body=b"no"), TAKEN)
    client.place(1)
    assert len(client.errors) == 1
    assert str(status) in client.errors[0]


def test_a_lost_connection_is_an_error_but_while_the_gateway_is_away(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway is the one door."""
    lost = urllib3.exceptions.ProtocolError("reset")
    answer(client, monkeypatch, lost, TAKEN, lost, TAKEN)
    client.door_closed.set()
    client.place(1)
    assert client.errors == []
    client.door_closed.clear()
    client.place(2)
    assert len(client.errors) == 1


def test_each_right_too_many_is_found(monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    """One line for each limit that a container lacks; none for one that has all."""
    monkeypatch.setattr(compose_confines, "inspect", lambda _: [CONFINED])
    assert compose_confines.breaches(project) == []
    loose = deepcopy(CONFINED)
    loose["HostConfig"] |= LOOSE
    loose["Config"]["User"] = ""
    monkeypatch.setattr(compose_confines, "inspect", lambda _: [loose])
    assert len(compose_confines.breaches(project)) == len(LOOSE) + 1


def test_a_database_that_lets_another_service_in_is_found(monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    """And one that keeps its own out."""
    monkeypatch.setattr(compose_confines, "inspect", lambda _: [])
    monkeypatch.setattr(compose_confines, "run", lambda _: "connected\n")
    assert "payments at the database orders: connected" in compose_confines.breaches(project)
    monkeypatch.setattr(compose_confines, "run", lambda _: "FATAL: permission denied for database\n")
    assert {line.split(" at ")[0] for line in compose_confines.breaches(project)} == set(compose_confines.WORKERS)


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project without containers, whose databases all refuse as they should."""

    def run(command: list[str]) -> str:
        own, other = command[-2:]
        return "connected\n" if own == other else f'FATAL: permission denied for database "{other}"\n'

    monkeypatch.setattr(compose_confines, "run", run)
    made = Project.__new__(Project)
    monkeypatch.setattr(Project, "containers", lambda *_: ["c1"])
    return made
