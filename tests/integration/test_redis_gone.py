"""Redis is only the fast path: lost or emptied in the middle of orders, it costs speed and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import pytest
import urllib3
from pytest_celery import CeleryTestCluster

from shared.contracts.queues import Queue
from tests.integration.nodes import Fleet, eventually, stopped
from tests.support import BODY
from workers.payments.operations import operation_key

ORDERS = 20


@pytest.fixture(scope="module")
def workers(fleet: Fleet) -> Iterator[CeleryTestCluster]:
    """The whole fleet, its workers at hand."""
    with fleet.running("api", "recorder"), fleet.running(*map(str, Queue)) as workers:
        yield workers


def place(fleet: Fleet, count: int) -> list[str]:
    """Place orders, several at a time; return their ids."""

    def one(_: int) -> str:
        answer = urllib3.request("POST", f"{fleet.api_url}/v1/orders", json=BODY, timeout=10, retries=False)
        assert answer.status == HTTPStatus.ACCEPTED, answer.data
        return str(answer.json()["id"])

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, range(count)))


def all_complete_and_charged_once(fleet: Fleet, ids: list[str]) -> None:
    """Wait for the orders and look into the provider's ledger."""
    statement = "SELECT id FROM orders WHERE status = 'COMPLETED'"
    eventually(lambda: set(ids) <= {row[0] for row in fleet.rows("orders", statement)}, "all are completed", timeout=60)
    assert [len(fleet.charges(operation_key("charge", order_id))) for order_id in ids] == [1] * len(ids)


def warnings(workers: CeleryTestCluster, event: str) -> list[int]:
    """Return how often each worker has logged an event."""
    return [
        sum(json.loads(line).get("event") == event for line in node.logs().splitlines() if line[:1] == "{")
        for node in workers
    ]


def test_orders_go_on_while_redis_is_gone(fleet: Fleet, workers: CeleryTestCluster) -> None:
    """All complete, each charged once; each worker says once that Redis is gone, not at every step."""
    first = place(fleet, ORDERS)
    before = warnings(workers, "redis_unavailable")
    with stopped(fleet.redis):
        second = place(fleet, ORDERS)
        all_complete_and_charged_once(fleet, first + second)
        said = [now - then for now, then in zip(warnings(workers, "redis_unavailable"), before, strict=True)]
    assert max(said) == 1
    assert said[0] == 1  # payments, whose breaker and leases are there
    all_complete_and_charged_once(fleet, place(fleet, ORDERS))


def test_a_second_outage_is_said_again(fleet: Fleet, workers: CeleryTestCluster) -> None:
    """One warning for each outage, one line when it is over."""
    place(fleet, 2)
    before, back = warnings(workers, "redis_unavailable"), warnings(workers, "redis_available")
    with stopped(fleet.redis):
        all_complete_and_charged_once(fleet, place(fleet, 4))

    def is_over() -> bool:
        place(fleet, 1)
        return all(now > then for now, then in zip(warnings(workers[:1], "redis_available"), back[:1], strict=True))

    eventually(is_over, "the payments worker uses Redis again")
    assert warnings(workers, "redis_unavailable")[0] == before[0] + 1


def test_an_emptied_redis_harms_nobody(fleet: Fleet, workers: CeleryTestCluster) -> None:
    """Leases and outcomes vanish again and again in the middle of orders; each is charged once."""
    with ThreadPoolExecutor(1) as pool:
        placing = pool.submit(place, fleet, 2 * ORDERS)
        eventually(lambda: fleet.forget_keys() or placing.done(), "the orders are placed")
        ids = placing.result()
    fleet.forget_keys()
    all_complete_and_charged_once(fleet, ids)
