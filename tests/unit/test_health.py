"""Probes: the process is up, and what it reaches is named, quickly and without details."""

import threading
import time
from collections.abc import Iterator

import pytest
from flask import Flask

from api import create_app, health
from shared import database
from tests.conftest import UseSettings

SECRET = "s3cret"
NOWHERE = {
    "broker_url": f"amqp://u:{SECRET}@127.0.0.1:1//",
    "redis_url": f"redis://:{SECRET}@127.0.0.1:1/0",
}


@pytest.fixture
def app(house: UseSettings) -> Flask:
    """The API."""
    return create_app()


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """An event that ends what hangs."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("path", ["/livez", "/health/"])
def test_a_process_that_is_up_says_so_and_asks_nobody(house: UseSettings, path: str) -> None:
    """With nothing at all to reach."""
    house(**NOWHERE, databases={"orders": f"postgresql://u:{SECRET}@127.0.0.1:1/orders"})
    answer = create_app().test_client().get(path)
    assert (answer.status_code, answer.json) == (200, {"ok": True})


def test_readiness_names_each_neighbour(app: Flask) -> None:
    """Everything is there."""
    answer = app.test_client().get("/readyz")
    assert answer.status_code == 200
    assert answer.json == {"ok": True, "checks": {"database": "ok", "broker": "ok", "redis": "ok"}}


def test_without_broker_and_redis_orders_are_still_taken(house: UseSettings) -> None:
    """Both are named, with no word on where they should be; the API stays in service."""
    house(**NOWHERE)
    answer = create_app().test_client().get("/readyz")
    assert answer.status_code == 200
    assert answer.json == {"ok": True, "checks": {"database": "ok", "broker": "unreachable", "redis": "unreachable"}}
    assert SECRET not in answer.text


def test_without_its_database_the_api_is_not_ready(house: UseSettings) -> None:
    """503, so that requests go elsewhere."""
    house(databases={"orders": f"postgresql://u:{SECRET}@127.0.0.1:1/orders"})
    database.forget_connections()
    answer = create_app().test_client().get("/readyz")
    assert answer.status_code == 503
    assert (answer.json["ok"], answer.json["checks"]["database"]) == (False, "unreachable")
    assert SECRET not in answer.text


def test_neighbours_that_hang_are_given_up_after_a_second_in_all(
    app: Flask, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hang; the answer comes after one's time. Who asks again meanwhile starts nothing more."""
    begun: list[str] = []

    def hang(name: str) -> None:
        begun.append(name)
        hanging.wait(60)

    looks = {"database": lambda: None, "broker": lambda: hang("broker"), "redis": lambda: hang("redis")}
    app.extensions["readiness"] = health.Readiness(looks)
    monkeypatch.setattr(health, "_PATIENCE", 0.2)
    started = time.monotonic()
    for _ in range(2):
        checks = app.test_client().get("/readyz").json["checks"]
        assert checks == {"database": "ok", "broker": "unreachable", "redis": "unreachable"}
    assert time.monotonic() - started < 2
    assert sorted(begun) == ["broker", "redis"]
