"""The API while the broker is away, silent or full: 202 within a second, and the order is driven on afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus

import pytest
import urllib3

from shared.contracts.queues import Queue
from stacks.processes import wait_for
from stacks.servers import RabbitMQ, Server
from tests.integration.containers import READY
from tests.integration.nodes import Fleet, eventually, silent, stopped
from tests.support import BODY

PATIENCE = 1.0  # seconds that a client waits at most
QUICK = 0.3  # seconds, once the API knows that the broker is away
FIRST, MORE = 4, 10  # orders: sent first, and after those


@pytest.fixture(scope="module")
def running(fleet: Fleet) -> Iterator[Fleet]:
    """The whole fleet; what fell silent is driven on soon."""
    with fleet.running(
        "api", *map(str, Queue), "recorder", "beat", SWEEP_AFTER="2", SWEEP_EVERY="1", WEB_CONCURRENCY="1"
    ):
        place(fleet)
        yield fleet


def place(fleet: Fleet) -> tuple[str, float]:
    """Place an order; return its URL and how many seconds the answer took."""
    started = time.monotonic()
    answer = urllib3.request("POST", f"{fleet.api_url}/v1/orders", json=BODY, timeout=10, retries=False)
    took = time.monotonic() - started
    assert answer.status == HTTPStatus.ACCEPTED, answer.data
    return f"{fleet.api_url}/v1/orders/{answer.json()['id']}", took


def status(url: str) -> str:
    """Return an order's status."""
    return str(urllib3.request("GET", url, timeout=5, retries=False).json()["status"])


@contextmanager
def full(broker: RabbitMQ) -> Iterator[None]:
    """The broker has a memory alarm: it reads nothing more from who publishes."""
    broker.ctl("set_vm_memory_high_watermark", "0.0001")
    try:
        wait_for(lambda: "memory" in broker.ctl("eval", "rabbit_alarm:get_alarms()."), READY, "the alarm")
        yield
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.4")


@pytest.mark.parametrize("away", [stopped, silent, full])
def test_an_order_is_accepted_without_the_broker_and_completed_when_it_is_back(
    running: Fleet, away: Callable[[Server], AbstractContextManager[None]]
) -> None:
    """The first requests wait less than a second, the following ones not at all; nobody has to help."""
    with away(running.rabbitmq):
        first = [place(running) for _ in range(FIRST)]
        following = [place(running) for _ in range(MORE)]
        assert [status(url) for url, _ in first + following] == ["PENDING"] * (FIRST + MORE)
    assert [took for _, took in first if took > PATIENCE] == []
    assert [took for _, took in following if took > QUICK] == []
    urls = [url for url, _ in first + following]
    eventually(lambda: {status(url) for url in urls} == {"COMPLETED"}, "all are completed", timeout=60)
    eventually(lambda: place(running)[1] < QUICK, "the API publishes again")


def test_the_api_stops_in_good_time_without_the_broker(running: Fleet) -> None:
    """What waits for the broker holds no worker back when it is told to stop."""
    api = next(node for node in running.nodes if node.name() == "api").container.process
    with stopped(running.rabbitmq):
        for _ in range(3):
            place(running)
        started = time.monotonic()
        api.stop(timeout=40)
        took = time.monotonic() - started
    api.start()
    wait_for(lambda: running.stack.ready("api"), READY, "the API", api)
    assert took < 15
