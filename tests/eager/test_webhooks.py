"""Webhooks through the whole saga, in this process: a reversal turns the order round, the courier's word is shown."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from werkzeug.test import TestResponse

from simulators.webhooks import new_secret, signed
from tests.eager.conftest import Saga

SECRET = new_secret()


@pytest.fixture(autouse=True)
def _secrets(saga: Saga) -> None:
    saga.use(payments_webhook_secrets=(SECRET,), delivery_webhook_secrets=(SECRET,))


def tell(saga: Saga, source: str, kind: str, message_id: str = "msg_1", **data: Any) -> TestResponse:
    """Send a signed message."""
    body = json.dumps({"type": kind, "timestamp": datetime.now(UTC).isoformat(), "data": data})
    headers = signed([SECRET], message_id, body)
    return saga.client.post(f"/v1/webhooks/{source}", data=body, headers=headers)


def reverse(saga: Saga, order_id: str) -> str:
    """Have the bank take the order's charge back, at the provider; return its transaction."""
    transaction_id = str(saga.order(order_id)["transaction_id"])
    saga.gateway.reverse(transaction_id)
    return transaction_id


def test_a_reversal_cancels_the_order_and_releases_the_courier(saga: Saga) -> None:
    """Nothing is refunded on top: the bank has given the money back."""
    order_id = saga.place()
    assert (saga.status(order_id), saga.booked) == ("COMPLETED", 1)
    transaction_id = reverse(saga, order_id)
    assert tell(saga, "payments", "payment.reversed", transaction_id=transaction_id).status_code == 202
    saga.drain()
    saga.app.tasks["orders.sweep"].apply_async()
    saga.drain()
    assert (saga.status(order_id), saga.order(order_id)["failure"]) == ("CANCELLED", "PAYMENT_REVERSED")
    assert (saga.booked, saga.money) == (0, (1, 0))
    assert saga.told(order_id) == ["completed", "cancelled"]


def test_a_webhook_that_the_ledger_does_not_confirm_changes_nothing(saga: Saga) -> None:
    """Signed or not, it is a hint: the provider's ledger says that the money is still ours."""
    order_id = saga.place()
    transaction_id = saga.order(order_id)["transaction_id"]
    assert tell(saga, "payments", "payment.reversed", transaction_id=transaction_id).status_code == 202
    saga.drain()
    assert saga.status(order_id) == "COMPLETED"


def test_a_reversal_told_again_has_no_further_effect(saga: Saga) -> None:
    """Two messages about one reversal, long after each other."""
    order_id = saga.place()
    transaction_id = reverse(saga, order_id)
    for number in range(2):
        message_id = f"msg_{number}"
        answer = tell(saga, "payments", "payment.reversed", message_id, transaction_id=transaction_id)
        assert answer.status_code == 202
        saga.drain()
        saga.app.tasks["orders.sweep"].apply_async()
        saga.drain()
    events = saga.events(order_id)
    assert [events.count(kind) for kind in ("payment.reversed", "delivery.released", "order.cancelled")] == [1, 1, 1]
    assert saga.money == (1, 0)


def test_the_couriers_word_changes_no_status(saga: Saga) -> None:
    """Picked up and delivered are on the timeline of an order that is COMPLETED before and after."""
    order_id = saga.place()
    for kind in ("delivery.picked_up", "delivery.delivered"):
        assert tell(saga, "delivery", kind, kind, order_id=order_id, courier="cou-ada").status_code == 202
    saga.drain()
    assert saga.events(order_id)[-2:] == ["delivery.picked_up", "delivery.delivered"]
    assert saga.timeline(order_id)[-1]["data"] == {"courier": "cou-ada"}
    assert saga.status(order_id) == "COMPLETED"
