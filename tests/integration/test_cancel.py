"""Cancelling over HTTP at random moments, with a provider that times out after charging: always undone, or done."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import pytest
import urllib3

from shared.contracts.queues import Queue
from tests.integration.nodes import Fleet, eventually
from tests.support import BODY
from workers.payments.operations import operation_key

SEED, ORDERS = 20260102, 30
LATEST = 3.0  # seconds after its placing that an order is cancelled at the latest


@pytest.fixture(scope="module")
def running(fleet: Fleet) -> Iterator[Fleet]:
    """The whole fleet, and a provider that often takes the money without saying so."""
    fast = {
        "GATEWAY_TIMEOUT": "0.5",
        "STEP_BACKOFF_MAX": "2",
        "SWEEP_AFTER": "3",
        "SWEEP_EVERY": "1",
        "RECONCILE_EVERY": "2",
    }
    fleet.faults(timeout_after_rate=0.2, timeout_before_rate=0.05, error_rate=0.1, timeout_seconds=2, seed=SEED)
    with fleet.running("api", *map(str, Queue), "recorder", "beat", **fast):
        yield fleet


def call(fleet: Fleet, method: str, path: str, **options: Any) -> Any:
    """Ask the API."""
    answer = urllib3.request(method, f"{fleet.api_url}/v1/orders{path}", timeout=10, retries=False, **options)
    assert answer.status in (HTTPStatus.OK, HTTPStatus.ACCEPTED), answer.data
    return answer.json()


def place_and_cancel(fleet: Fleet, after: float) -> str:
    """Place an order and cancel it so many seconds later; return its id."""
    order_id = str(call(fleet, "POST", "", json=BODY)["id"])
    threading.Event().wait(after)
    call(fleet, "POST", f"/{order_id}/cancel")
    return order_id


def net_cents(fleet: Fleet, order_id: str) -> tuple[int, int]:
    """Return how often the provider charged for an order, and what it kept of it."""
    lines = fleet.ledger.entries()
    charges = [line for line in lines if line["idempotency_key"] == operation_key("charge", order_id)]
    transactions = {line["transaction_id"] for line in charges}
    given_back = [line for line in lines if line["kind"] != "charge" and line["transaction_id"] in transactions]
    return len(charges), sum(line["amount_cents"] for line in charges) - sum(
        line["amount_cents"] for line in given_back
    )


def test_cancelled_at_random_moments_nobody_stays_charged(running: Fleet) -> None:
    """All end CANCELLED with a net of nought at the provider, no courier booked, and told once."""
    moments = random.Random(SEED)
    with ThreadPoolExecutor(ORDERS) as pool:
        waits = [0.0, 0.0, *(moments.uniform(0, LATEST) for _ in range(ORDERS - 2))]
        ids = list(pool.map(lambda after: place_and_cancel(running, after), waits))
    eventually(lambda: _statuses(running, ids) == {"CANCELLED"}, "all are cancelled", timeout=60)
    assert {
        order_id: found for order_id in ids if (found := net_cents(running, order_id)) not in ((0, 0), (1, 0))
    } == {}
    bookings = {row[0]: row[1] for row in running.rows("delivery", "SELECT order_id, status FROM bookings")}
    assert [bookings.get(order_id) for order_id in ids] == ["RELEASED"] * ORDERS
    assigned = list(bookings.values()).count("ASSIGNED")  # other tests' orders
    assert running.rows("delivery", "SELECT sum(open_bookings) FROM couriers")[0][0] == assigned
    told = (
        "SELECT count(*), count(DISTINCT order_id) FROM notifications WHERE kind = 'cancelled' AND sent_at IS NOT NULL"
    )
    eventually(lambda: tuple(running.rows("notifications", told)[0]) == (ORDERS, ORDERS), "each customer is told once")
    assert any(net_cents(running, order_id) == (1, 0) for order_id in ids)
    retries = "SELECT count(*) FROM order_events WHERE type = 'step.retrying'"
    assert running.rows("orders", retries)[0][0] > 0, "the provider never failed: this showed nothing"


def test_orders_beside_them_complete(running: Fleet) -> None:
    """Those that nobody cancels are charged once, whatever the provider does."""
    ids = [str(call(running, "POST", "", json=BODY)["id"]) for _ in range(5)]
    eventually(lambda: _statuses(running, ids) == {"COMPLETED"}, "all are completed", timeout=60)
    assert [net_cents(running, order_id) for order_id in ids] == [(1, BODY["amount_cents"])] * len(ids)


def _statuses(fleet: Fleet, ids: list[str]) -> set[str]:
    return {str(call(fleet, "GET", f"/{order_id}")["status"]) for order_id in ids}
