"""The provider's word against ours, over real servers: reversals stop the delivery, stray charges are found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import pytest
import urllib3

from shared.contracts.queues import Queue
from tests.integration.nodes import Fleet, eventually
from tests.support import BODY
from workers.orders import operations
from workers.payments.operations import operation_key

CHARGE = {name: BODY[name] for name in ("amount_cents", "currency", "payment_method")}


@pytest.fixture(scope="module")
def running(fleet: Fleet) -> Iterator[Fleet]:
    """The whole fleet, reconciling every second."""
    fast = {"GATEWAY_TIMEOUT": "0.5", "SWEEP_EVERY": "1", "SWEEP_AFTER": "5", "RECONCILE_EVERY": "1"}
    with fleet.running("api", *map(str, Queue), "recorder", "beat", **fast):
        yield fleet


def call(fleet: Fleet, method: str, path: str, **options: Any) -> Any:
    """Ask the API."""
    answer = urllib3.request(method, f"{fleet.api_url}/v1/orders{path}", timeout=10, retries=False, **options)
    assert answer.status in (HTTPStatus.OK, HTTPStatus.ACCEPTED), answer.data
    return answer.json()


def place(fleet: Fleet) -> str:
    """Place an order; return its id."""
    return str(call(fleet, "POST", "", json=BODY)["id"])


def is_(fleet: Fleet, order_id: str, status: str) -> None:
    """Wait until an order has a status."""
    eventually(lambda: call(fleet, "GET", f"/{order_id}")["status"] == status, f"{order_id} is {status}")


def events(fleet: Fleet, order_id: str) -> list[str]:
    """Return the types of an order's events."""
    return [event["type"] for event in call(fleet, "GET", f"/{order_id}/events")["results"]]


def kinds(fleet: Fleet, order_id: str) -> list[str]:
    """Return what the provider's ledger has about an order's charge."""
    lines = fleet.ledger.entries()
    mine = {line["transaction_id"] for line in lines if line["idempotency_key"] == operation_key("charge", order_id)}
    return [line["kind"] for line in lines if line["transaction_id"] in mine]


def test_a_reversal_stops_the_delivery_and_refunds_nothing(running: Fleet) -> None:
    """The bank took the money back: the courier is released, the order cancelled, no second refund made."""
    order_id = place(running)
    is_(running, order_id, "COMPLETED")
    transaction_id = call(running, "GET", f"/{order_id}")["transaction_id"]
    reversed_ = urllib3.request("POST", f"{running.extra['PSP_URL']}/reverse", json={"transaction_id": transaction_id})
    assert reversed_.status == HTTPStatus.OK
    is_(running, order_id, "CANCELLED")
    order = call(running, "GET", f"/{order_id}")
    assert order["failure"] == "PAYMENT_REVERSED"
    happened = events(running, order_id)
    assert happened.count("payment.reversed") == happened.count("delivery.released") == 1
    assert "payment.refunded" not in happened
    assert kinds(running, order_id) == ["charge", "reversal"]
    eventually(lambda: events(running, order_id).count("customer.notified") == 2, "the customer is told")


def test_a_charge_that_arrives_after_the_cancellation_is_given_back(running: Fleet) -> None:
    """Only the ledger knows of it: refunded, and the refund is on the order's timeline."""
    with running.inside():
        order, _ = operations.place(dict(BODY), "late")  # its chain is still in some queue
    call(running, "POST", f"/{order.id}/cancel")
    is_(running, order.id, "CANCELLED")
    running.ledger.charge(operation_key("charge", order.id), CHARGE, decline=None)
    eventually(lambda: "payment.refunded" in events(running, order.id), "the refund is on the timeline")
    assert kinds(running, order.id) == ["charge", "refund"]
    is_(running, order.id, "CANCELLED")


def test_a_charge_that_nobody_knows_is_reported_once_and_left_alone(running: Fleet) -> None:
    """An error line for an operator, at one run only; the money is not given back blindly."""
    running.ledger.charge("stranger-1", CHARGE, decline=None)
    eventually(lambda: _reports(running), "it is reported")
    behind = place(running)
    is_(running, behind, "COMPLETED")
    runs = _runs(running)
    eventually(lambda: _runs(running) > runs + 1, "it was reconciled again")
    (report,) = _reports(running)
    assert (report["level"], report["operation_key"]) == ("error", "stranger-1")
    lines = running.ledger.entries()
    (stray,) = [line for line in lines if line["idempotency_key"] == "stranger-1"]
    assert [line["kind"] for line in lines if line["transaction_id"] == stray["transaction_id"]] == ["charge"]


def _logged(fleet: Fleet, event: str) -> list[dict[str, Any]]:
    """Return the payments worker's log lines of an event."""
    payments = next(node for node in fleet.nodes if node.name() == "payments")
    lines = [json.loads(line) for line in payments.logs().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def _reports(fleet: Fleet) -> list[dict[str, Any]]:
    return _logged(fleet, "charge_unaccounted")


def _runs(fleet: Fleet) -> int:
    return len(_logged(fleet, "reconciled"))
