"""What can be read of orders over HTTP: lists by page and cursor, details with what was asked for, everybody's own."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from flask.testing import FlaskClient

from api import create_app
from shared.contracts.events import Event, EventType
from shared.messaging.events import publish_events
from tests.eager.conftest import Saga
from tests.support import new_body
from tests.tokens import KEY, bearer


def get(saga: Saga, path: str) -> Any:
    """Ask; what is there."""
    answer = saga.client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json


def test_a_list_is_read_by_its_cursor(saga: Saga) -> None:
    """From the first page on, without a count, to the end."""
    orders = [saga.place() for _ in range(3)]
    first = get(saga, "/v1/orders?page_size=2")
    assert first.keys() == {"count", "page", "page_size", "next", "results"}
    second = get(saga, f"/v1/orders?page_size=2&after={first['next']}")
    assert second.keys() == {"page_size", "next", "results"}
    assert [each["id"] for each in first["results"] + second["results"]] == orders[::-1]
    assert second["next"] is None


def test_a_list_is_filtered(saga: Saga) -> None:
    """By status and by time; the façade has its own word for COMPLETED."""
    done, undone = saga.place(), saga.place(payment_method="tok_declined")
    created = saga.order(undone)["created_at"].replace("+", "%2B")
    for query, found in {
        "status=COMPLETED": [done],
        "status=CANCELLED": [undone],
        f"created_after={created}": [],
        f"created_before={created}": [done],
    }.items():
        assert [each["id"] for each in get(saga, f"/v1/orders?{query}")["results"]] == found, query
    assert [each["status"] for each in get(saga, "/api/orders/?status=CONFIRMED")["results"]] == ["CONFIRMED"]


def test_a_detail_shows_what_was_asked_for(saga: Saga) -> None:
    """Payment, delivery and timeline, each only when asked for."""
    order_id = saga.place()
    assert get(saga, f"/v1/orders/{order_id}").keys().isdisjoint({"payment", "delivery", "timeline"})
    order = get(saga, f"/v1/orders/{order_id}?expand=payment,delivery,timeline")
    assert (order["payment"]["status"], order["payment"]["amount_cents"]) == ("CAPTURED", 2590)
    assert order["payment"]["transaction_id"] == order["transaction_id"]
    assert order["payment"]["captured_at"]
    assert order["payment"]["refunded_at"] is None
    assert (order["delivery"]["status"], order["delivery"]["courier"]) == ("ASSIGNED", order["courier"])
    assert [each["id"] for each in order["timeline"]] == [each["id"] for each in saga.timeline(order_id)]
    assert "timeline" not in get(saga, f"/api/orders/{order_id}/?expand=payment")


def test_a_detail_follows_the_order_back(saga: Saga) -> None:
    """Refunded and released; what the courier states is shown with the courier's times."""
    order_id = saga.place()
    at = datetime(2026, 5, 1, 12, tzinfo=UTC)
    picked_up = Event(str(uuid.uuid4()), EventType.DELIVERY_PICKED_UP, order_id, "courier", at, "corr-1")
    publish_events(saga.app, picked_up)
    saga.drain()
    delivery = get(saga, f"/v1/orders/{order_id}?expand=delivery")["delivery"]
    assert (delivery["status"], delivery["picked_up_at"]) == ("PICKED_UP", at.isoformat())
    saga.cancel(order_id)
    saga.drain()
    order = get(saga, f"/v1/orders/{order_id}?expand=delivery,payment")
    assert (order["payment"]["status"], order["delivery"]["status"]) == ("REFUNDED", "RELEASED")
    assert order["payment"]["refunded_at"]


@pytest.mark.parametrize("query", ["expand=", "expand=address", "expand=payment,,", "page=1"])
def test_a_detail_that_does_not_exist_is_refused(saga: Saga, query: str) -> None:
    """400 that names it."""
    answer = saga.client.get(f"/v1/orders/{saga.place()}?{query}")
    assert (answer.status_code, answer.json["errors"][0]["field"].partition(".")[0]) == (400, query.partition("=")[0])


@pytest.fixture
def strict(saga: Saga) -> FlaskClient:
    """The same API with authentication."""
    saga.use(**KEY)
    return create_app(celery=saga.app).test_client()


def test_a_caller_sees_their_own_orders_only(saga: Saga, strict: FlaskClient) -> None:
    """Others' do not exist for them, in whatever way they ask; ``ops`` sees all."""
    order_id = strict.post("/v1/orders", json=new_body(), headers=bearer()).json["id"]
    saga.drain()
    mine, theirs = bearer(), bearer(sub="bob")
    ops = bearer(sub="carol", scope="orders:read orders:write ops")
    paths = [f"{root}{order_id}{rest}" for root in ("/v1/orders/", "/api/orders/") for rest in ("", "/events")]
    for path in [path if path.startswith("/v1") else f"{path}/" for path in paths]:
        statuses = [strict.get(path, headers=headers).status_code for headers in (mine, theirs, ops)]
        assert statuses == [200, 404, 200], path
    counts = [strict.get("/v1/orders", headers=headers).json["count"] for headers in (mine, theirs, ops)]
    assert counts == [1, 0, 1]
    assert strict.post(f"/v1/orders/{order_id}/cancel", headers=theirs).status_code == 404
    assert strict.get(f"/v1/orders/{order_id}", headers=mine).json["status"] == "COMPLETED"
    assert strict.post(f"/v1/orders/{order_id}/cancel", headers=ops).status_code == 202


def test_callers_have_their_own_keys(strict: FlaskClient) -> None:
    """Two callers with the same Idempotency-Key place two orders, and neither learns of the other's."""
    answers = [
        strict.post("/v1/orders", json=new_body(), headers={**bearer(sub=sub), "Idempotency-Key": "1"})
        for sub in ("alice", "bob", "alice")
    ]
    assert [answer.status_code for answer in answers] == [202, 202, 200]
    assert answers[0].json["id"] == answers[2].json["id"] != answers[1].json["id"]
