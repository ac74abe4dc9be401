"""What a client that waits is told, by what became of the order."""

from collections.abc import Iterator

import pytest
from flask import Flask

from api import create_app
from api.compat import VIEW as COMPAT
from api.orders import VIEW
from api.outcomes import has_outcome, is_final
from tests.conftest import UseSettings
from tests.unit.test_api_schemas import NoBroker
from workers.orders.idempotency import Answer
from workers.orders.operations import Order

ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def app(house: UseSettings) -> Iterator[Flask]:
    """The API, serving a request."""
    app = create_app(celery=NoBroker())  # type: ignore[arg-type]
    with app.test_request_context("/v1/orders", method="POST"):
        yield app


def order(status: str, failure: str | None = None) -> Order:
    """Return an order that got this far."""
    return Order(id=ID, status=status, failure=failure, waybill={"items": []})


@pytest.mark.parametrize(
    ("status", "failure", "answer", "code"),
    [
        ("COMPLETED", None, 201, None),
        ("CANCELLING", "PAYMENT_FAILED", 402, "PAYMENT_FAILED"),
        ("CANCELLED", "PAYMENT_FAILED", 402, "PAYMENT_FAILED"),
        ("CANCELLING", "INSUFFICIENT_STOCK", 422, "INSUFFICIENT_STOCK"),
        ("NEEDS_ATTENTION", "NO_COURIER", 422, "NO_COURIER"),
        ("CANCELLED", "CANCEL_REQUESTED", 422, "CANCEL_REQUESTED"),
        ("AWAITING_PAYMENT", None, 503, "UPSTREAM_UNAVAILABLE"),
        ("AWAITING_DISPATCH", None, 503, "UPSTREAM_UNAVAILABLE"),
        ("PENDING", None, 202, None),
        ("PAID", None, 202, None),
    ],
)
def test_the_outcome_is_told(app: Flask, status: str, failure: str | None, answer: int, code: str | None) -> None:
    """As a status, and as a code where it is a refusal; with the order either way."""
    found = order(status, failure)
    told = VIEW.outcome(found)
    assert (told.status, told.body.get("detail")) == (answer, code)
    assert (told.body["order"] if code else told.body)["id"] == ID
    assert has_outcome(found) == (answer != 202)
    response = VIEW.respond(told, ID, {})
    assert response.content_type == ("application/problem+json" if code else "application/json")
    assert response.headers["Location"] == f"/v1/orders/{ID}"
    assert ("Retry-After" in response.headers) == (answer == 503)


def test_an_earlier_gateways_clients_read_confirmed(app: Flask) -> None:
    """And nothing else differs."""
    told, ours = COMPAT.outcome(order("COMPLETED")), VIEW.outcome(order("COMPLETED"))
    assert told == Answer(201, {**ours.body, "status": "CONFIRMED"})
    assert COMPAT.outcome(order("PENDING")).body["status"] == "PENDING"


def test_what_may_still_change_is_not_final() -> None:
    """A parked order and one on its way may still complete: a repetition asks the order again."""
    finals = {status: is_final(Answer(status, {})) for status in (201, 202, 402, 422, 503)}
    assert finals == {201: True, 202: False, 402: True, 422: True, 503: False}
