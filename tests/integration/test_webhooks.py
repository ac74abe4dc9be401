"""Webhooks over real servers: the provider's own message turns an order round although nobody polls its ledger."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

import pytest
import urllib3

from shared.contracts.queues import AUDIT_STREAM, EVENTS_QUEUE, Queue, dead_letter_queue
from simulators.webhooks import signed
from tests.integration.nodes import Fleet, eventually
from tests.support import BODY

HURRY = 2  # seconds within which a webhook is answered, whatever is wrong with the broker


@pytest.fixture(scope="module")
def running(fleet: Fleet) -> Iterator[Fleet]:
    """The whole fleet with the provider as a process of its own; the ledger is polled once an hour."""
    variables = {"PSP_URL": fleet.stack.psp_url, "RECONCILE_EVERY": "3600", "SWEEP_EVERY": "1", "SWEEP_AFTER": "5"}
    with fleet.running("psp", "api", *map(str, Queue), "recorder", "beat", **variables):
        yield fleet


def call(fleet: Fleet, method: str, path: str, **options: Any) -> Any:
    """Ask the API."""
    answer = urllib3.request(method, f"{fleet.api_url}/v1/orders{path}", timeout=10, retries=False, **options)
    assert answer.status in (HTTPStatus.OK, HTTPStatus.ACCEPTED), answer.data
    return answer.json()


def completed(fleet: Fleet) -> dict[str, Any]:
    """Place an order and return it when it is completed and the customer was told."""
    order_id = call(fleet, "POST", "", json=BODY)["id"]
    eventually(lambda: "customer.notified" in types(fleet, order_id), "the customer is told")
    eventually(lambda: call(fleet, "GET", f"/{order_id}")["status"] == "COMPLETED", f"{order_id} is completed")
    return dict(call(fleet, "GET", f"/{order_id}"))


def status(fleet: Fleet, order: dict[str, Any]) -> str:
    """Return where an order stands."""
    return str(call(fleet, "GET", f"/{order['id']}")["status"])


def types(fleet: Fleet, order_id: str) -> list[str]:
    """Return the types of an order's events, in time."""
    return [event["type"] for event in call(fleet, "GET", f"/{order_id}/events")["results"]]


def reverse(fleet: Fleet, order: dict[str, Any]) -> None:
    """Have the provider take an order's charge back, and tell so."""
    body = {"transaction_id": order["transaction_id"]}
    answer = urllib3.request("POST", f"{fleet.stack.psp_url}/reverse", json=body, timeout=10, retries=False)
    assert answer.status == HTTPStatus.OK, answer.data


def lines(fleet: Fleet, order: dict[str, Any]) -> list[str]:
    """Return what the provider's ledger has about an order's charge."""
    entries = urllib3.request("GET", f"{fleet.stack.psp_url}/ledger", timeout=10, retries=False).json()["entries"]
    return [entry["kind"] for entry in entries if entry["transaction_id"] == order["transaction_id"]]


def bookings(fleet: Fleet) -> int:
    """Return how many bookings all couriers have."""
    return int(fleet.rows("delivery", "SELECT sum(open_bookings) FROM couriers")[0][0])


def picked_up(fleet: Fleet, order_id: str, message_id: str) -> tuple[int, float]:
    """Send a courier's signed message; return the status and the seconds it took."""
    stated = {"type": "delivery.picked_up", "timestamp": datetime.now(UTC).isoformat(), "data": {"order_id": order_id}}
    body = json.dumps(stated)
    headers = signed([fleet.stack.settings["DELIVERY_WEBHOOK_SECRET"]], message_id, body)
    url, started = f"{fleet.api_url}/v1/webhooks/delivery", time.monotonic()
    answer = urllib3.request("POST", url, body=body, headers=headers, timeout=10, retries=False)
    return answer.status, time.monotonic() - started


def test_a_reversal_cancels_the_order_within_seconds(running: Fleet) -> None:
    """The provider tells, its ledger confirms: the courier is released, and nothing refunded on top."""
    order = completed(running)
    before = bookings(running)
    reverse(running, order)
    eventually(lambda: status(running, order) == "CANCELLED", "it is cancelled", timeout=15)
    assert call(running, "GET", f"/{order['id']}")["failure"] == "PAYMENT_REVERSED"
    happened = types(running, order["id"])
    assert happened.count("payment.reversed") == happened.count("delivery.released") == 1
    assert "payment.refunded" not in happened
    assert lines(running, order) == ["charge", "reversal"]
    assert bookings(running) == before - 1


def test_many_reversals_at_once_are_each_settled_once(running: Fleet) -> None:
    """As many runs of the reconciliation side by side: nothing is refunded, nobody is in another's way."""
    dead = running.count(dead_letter_queue(Queue.PAYMENTS))
    with ThreadPoolExecutor(8) as pool:
        orders = list(pool.map(lambda _: completed(running), range(8)))
        list(pool.map(lambda order: reverse(running, order), orders))
    eventually(lambda: {status(running, order) for order in orders} == {"CANCELLED"}, "all are cancelled")
    for order in orders:
        assert types(running, order["id"]).count("payment.reversed") == 1
        assert lines(running, order) == ["charge", "reversal"]
    assert running.count(dead_letter_queue(Queue.PAYMENTS)) == dead


def test_a_reversal_and_a_cancellation_at_once_end_in_one_cancelled_order(running: Fleet) -> None:
    """Whoever comes first: the provider refuses a refund of what is reversed, and the order ends all the same."""
    order = completed(running)
    with ThreadPoolExecutor(2) as pool:
        cancelled = pool.submit(call, running, "POST", f"/{order['id']}/cancel")
        reversed_ = pool.submit(reverse, running, order)
        cancelled.result()
        with suppress(AssertionError):  # refunded before it could be reversed
            reversed_.result()
    eventually(lambda: status(running, order) == "CANCELLED", "it is cancelled", timeout=60)
    assert len(lines(running, order)) == 2
    assert "delivery.released" in types(running, order["id"])


def test_the_couriers_word_reaches_timeline_and_audit(running: Fleet) -> None:
    """Told twice it shows once; the order stays COMPLETED."""
    order_id = completed(running)["id"]
    for number in range(2):
        message_id = f"msg_{number}_{order_id}"
        # a process of the API that has not met the broker yet may ask for another attempt
        eventually(lambda name=message_id: picked_up(running, order_id, name)[0] == HTTPStatus.ACCEPTED, "it is taken")
    eventually(lambda: "delivery.picked_up" in types(running, order_id), "it shows")
    eventually(lambda: running.count(EVENTS_QUEUE) == 0, "all events are recorded")
    assert types(running, order_id).count("delivery.picked_up") == 1
    assert call(running, "GET", f"/{order_id}")["status"] == "COMPLETED"

    def audited(events: list[dict[str, Any]]) -> bool:
        return any((event["type"], event["subject"]) == ("delivery.picked_up", order_id) for event in events)

    assert running.replay(AUDIT_STREAM, audited)


@contextmanager
def _no_broker(fleet: Fleet) -> Iterator[None]:
    """Take the virtual host away: every connection is closed and none is let in."""
    fleet.rabbitmq.delete_vhost()
    try:
        yield
    finally:
        fleet.rabbitmq.add_vhost()
        fleet.declare()


def test_without_the_broker_the_sender_is_told_to_come_back(running: Fleet) -> None:
    """503 at once and nothing put down; the same message is taken when the broker is back."""
    order_id = completed(running)["id"]
    message_id = f"msg_{order_id}"
    with _no_broker(running):
        for _ in range(3):
            answer, seconds = picked_up(running, order_id, message_id)
            assert (answer, seconds < HURRY) == (HTTPStatus.SERVICE_UNAVAILABLE, True), seconds
    known = "SELECT count(*) FROM webhook_receipts WHERE webhook_id = :id"
    assert running.rows("orders", known, id=message_id)[0][0] == 0
    eventually(lambda: picked_up(running, order_id, message_id)[0] == HTTPStatus.ACCEPTED, "it is taken")
    eventually(lambda: "delivery.picked_up" in types(running, order_id), "it shows")


def test_old_receipts_are_forgotten(running: Fleet) -> None:
    """The sweeper deletes them, by and by; those of today stay."""
    old = datetime.now(UTC) - timedelta(days=2)
    put = "INSERT INTO webhook_receipts (source, webhook_id, signed_at) VALUES ('payments', :id, :at)"
    for name, at in (("old", old), ("young", datetime.now(UTC))):
        running.rows("orders", put, id=f"receipt-{name}", at=at)
    find = "SELECT webhook_id FROM webhook_receipts WHERE webhook_id LIKE 'receipt-%'"
    eventually(lambda: running.rows("orders", find) == [("receipt-young",)], "the old one is forgotten")
