"""A request repeated under its Idempotency-Key happens once: same answer again, another body refused."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from werkzeug.test import TestResponse

from shared.database import get_database
from shared.errors import Transient
from tests.eager.conftest import Saga
from tests.support import new_body
from workers.orders import idempotency
from workers.orders.models import IdempotencyKey, Order

KEY = {"Idempotency-Key": "basket-1"}


def place(saga: Saga, headers: dict[str, str] | None = None, **changes: Any) -> TestResponse:
    """Place an order under the key."""
    return saga.client.post("/v1/orders", json=new_body(**changes), headers={**KEY, **(headers or {})})


def orders() -> int:
    """Return how many orders are stored."""
    with get_database("orders").transaction() as session:
        return session.query(Order).count()


def change(**values: Any) -> None:
    """Change the one key that is stored."""
    with get_database("orders").transaction() as session:
        session.query(IdempotencyKey).update(values)  # type: ignore[arg-type]


def test_a_repetition_gets_the_stored_answer(saga: Saga) -> None:
    """200, word for word what was answered first, one order, one charge."""
    first, second = place(saga), place(saga)
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json == second.json
    assert first.headers["Location"] == second.headers["Location"]
    assert ("Idempotent-Replay" in first.headers, second.headers["Idempotent-Replay"]) == (False, "true")
    assert (orders(), saga.money) == (1, (1, 0))


def test_the_same_json_spelled_otherwise_is_the_same_request(saga: Saga) -> None:
    """Order of fields and white space say nothing."""
    place(saga)
    body = json.dumps(dict(reversed(new_body().items())), indent=4)
    again = saga.client.post("/v1/orders", data=body, headers=KEY, content_type="application/json")
    assert (again.status_code, orders()) == (200, 1)


def test_another_body_under_the_key_is_refused(saga: Saga) -> None:
    """The client mixed something up; nothing is placed."""
    place(saga)
    other = place(saga, amount_cents=1)
    assert (other.status_code, other.json["detail"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert other.mimetype == "application/problem+json"
    assert orders() == 1


def test_another_resource_under_the_key_is_refused(saga: Saga) -> None:
    """A key belongs to one request: placing is not cancelling, and /v1 is not /api."""
    order_id = place(saga).json["id"]
    for path in (f"/v1/orders/{order_id}/cancel", "/api/orders/"):
        answer = saga.client.post(path, json={} if "cancel" in path else new_body(), headers=KEY)
        assert (answer.status_code, answer.json["detail"]) == (409, "IDEMPOTENCY_CONFLICT")
    assert (saga.status(order_id), orders()) == ("PENDING", 1)


def test_while_the_first_is_worked_on_a_repetition_has_to_wait(saga: Saga) -> None:
    """409 with Retry-After; the first one's end, or its death, ends that."""
    place(saga)
    change(status=None, answer=None, pending_until=datetime.now(UTC) + timedelta(seconds=7.5))
    busy = place(saga)
    assert (busy.status_code, busy.json["detail"]) == (409, "IDEMPOTENCY_IN_PROGRESS")
    assert busy.headers["Retry-After"] in {"7", "8"}
    change(pending_until=datetime.now(UTC))
    late = place(saga)
    assert (late.status_code, late.headers["Idempotent-Replay"], orders()) == (200, "true", 1)


def test_a_request_that_is_wrong_uses_no_key(saga: Saga) -> None:
    """Corrected, it is placed under the same key."""
    assert place(saga, amount_cents=-1).status_code == 400
    assert place(saga).status_code == 202


@pytest.mark.parametrize("key", ["", "a" * 256, "ä", "a b", "\x7f"])
def test_what_is_no_key_is_refused(saga: Saga, key: str) -> None:
    """400 that names the header."""
    answer = place(saga, {"Idempotency-Key": key})
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (400, "Idempotency-Key")
    assert orders() == 0


def test_without_a_key_every_request_is_another(saga: Saga) -> None:
    """As ever."""
    for _ in range(2):
        assert saga.client.post("/v1/orders", json=new_body()).status_code == 202
    assert orders() == 2


def test_cancelling_is_repeated_too(saga: Saga) -> None:
    """200 and the stored answer, though the order went on meanwhile."""
    order_id = place(saga).json["id"]
    saga.drain()
    path, key = f"/v1/orders/{order_id}/cancel", {"Idempotency-Key": "no-more"}
    first = saga.client.post(path, headers=key)
    saga.drain()
    again = saga.client.post(path, headers=key)
    assert (first.status_code, again.status_code, again.headers["Idempotent-Replay"]) == (202, 200, "true")
    assert first.json == again.json
    assert saga.status(order_id) == "CANCELLED"


def test_an_outcome_that_was_waited_for_is_stored(saga: Saga) -> None:
    """A refusal is repeated as the refusal it was, from the store."""
    saga.use(web_threads=4)
    order_id = place(saga, {"Prefer": "wait=1"}, payment_method="tok_declined").headers["Location"].rpartition("/")[2]
    saga.drain()
    change(pending_until=datetime.now(UTC))
    first, again = (place(saga, {"Prefer": "wait=1"}, payment_method="tok_declined") for _ in range(2))
    for answer in (first, again):
        assert (answer.status_code, answer.json["detail"], answer.headers["Idempotent-Replay"]) == (
            402,
            "PAYMENT_FAILED",
            "true",
        )
        assert answer.json["order"]["id"] == order_id
    with get_database("orders").transaction() as session:
        assert session.query(IdempotencyKey).one().status == 402


def test_a_parked_order_is_asked_again(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with Retry-After is no last word: once an operator has put the order back, a repetition tells the outcome."""

    def gone(*_: Any) -> None:
        raise Transient("provider: gone")

    monkeypatch.setattr(saga.gateway, "charge", gone)
    statuses = []
    for _ in range(2):
        answer = place(saga, {"Prefer": "wait=1"}, payment_method="tok_parked")
        statuses.append(answer.status_code)
        saga.drain()
        change(pending_until=datetime.now(UTC))
    assert statuses == [202, 503]
    assert (answer.json["detail"], answer.json["order"]["status"]) == ("UPSTREAM_UNAVAILABLE", "AWAITING_PAYMENT")
    assert answer.headers["Retry-After"]
    with get_database("orders").transaction() as session:
        assert session.query(IdempotencyKey).one().status is None


def test_old_keys_are_forgotten_a_batch_at_a_time(saga: Saga) -> None:
    """The oldest first, none that may still be asked for."""
    for number in range(3):
        place(saga, {"Idempotency-Key": f"key-{number}"})
    now = datetime.now(UTC)
    assert idempotency.forget_keys(now - timedelta(hours=1), 10) == 0
    assert [idempotency.forget_keys(now + timedelta(hours=1), 2) for _ in range(3)] == [2, 1, 0]
