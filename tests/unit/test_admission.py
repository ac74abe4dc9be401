"""Admission: while the backlog is long, new orders are refused instead of promised."""

import itertools
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from flask.testing import FlaskClient

from api import admission, create_app
from shared.contracts.saga import Status
from shared.database import get_database
from tests.conftest import UseSettings
from tests.support import BODY, json_logs
from workers.orders import operations
from workers.orders.models import Order

LIMIT = 3
UNDER_WAY = (Status.PENDING, Status.PAID, Status.CANCELLING)


@pytest.fixture(autouse=True)
def _count_every_time(house: UseSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count holds for no time."""
    house(admission_limit=LIMIT)
    monkeypatch.setattr(admission, "_FRESH", 0.0)


@pytest.fixture
def client() -> FlaskClient:
    """The API; its broker is in memory, and nobody works."""
    return create_app().test_client()


def store(count: int, *statuses: Status) -> None:
    """Store orders in these statuses by turns."""
    with get_database("orders").transaction() as session:
        for status in itertools.islice(itertools.cycle(statuses), count):
            fields = {"customer_id": "c", "amount_cents": 1, "currency": "EUR", "waybill": BODY}
            due = None if status in (Status.COMPLETED, Status.CANCELLED) else datetime.now(UTC)
            session.add(Order(id=str(uuid.uuid4()), status=status, correlation_id="c", due_at=due, **fields))


def finish() -> None:
    """Complete every order."""
    with get_database("orders").transaction() as session:
        session.query(Order).update({"status": Status.COMPLETED, "due_at": None})


def test_a_long_backlog_refuses_new_orders_until_it_is_short_again(client: FlaskClient) -> None:
    """503 with the seconds to wait; nothing is stored; looking and cancelling go on."""
    store(LIMIT - 1, *UNDER_WAY)
    assert client.post("/v1/orders", json=BODY).status_code == 202
    refused = client.post("/v1/orders", json=BODY)
    assert (refused.status_code, refused.mimetype) == (503, "application/problem+json")
    assert int(refused.headers["Retry-After"]) >= 1
    listed = client.get("/v1/orders").json
    assert listed["count"] == LIMIT
    assert client.post(f"/v1/orders/{listed['results'][0]['id']}/cancel").status_code == 202
    finish()
    assert client.post("/v1/orders", json=BODY).status_code == 202


@pytest.mark.parametrize("status", sorted(set(Status) - set(UNDER_WAY)))
def test_what_waits_for_no_worker_is_no_backlog(client: FlaskClient, status: Status) -> None:
    """Ended orders, and parked ones, which are an operator's."""
    store(LIMIT + 1, status)
    assert client.post("/v1/orders", json=BODY).status_code == 202


@pytest.mark.parametrize(("stored", "counted"), [(0, 0), (2, 2), (3, 3), (9, 3)])
def test_the_backlog_is_counted_no_further_than_needed(stored: int, counted: int) -> None:
    """The count ends at the limit, however long the backlog is."""
    store(stored, *UNDER_WAY)
    assert operations.backlog(LIMIT) == counted


def counting(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], int]) -> list[int]:
    """Have the backlog counted by ``answer``; return the list of its limits, one for each count."""
    asked: list[int] = []

    def backlog(limit: int) -> int:
        asked.append(limit)
        return answer()

    monkeypatch.setattr(operations, "backlog", backlog)
    return asked


def test_a_count_holds_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many orders come, the database is asked once in that time."""
    monkeypatch.setattr(admission, "_FRESH", 60.0)
    asked = counting(monkeypatch, lambda: LIMIT)
    backlog = admission.Backlog(LIMIT)
    assert [backlog.is_full() for _ in range(5)] == [True] * 5
    assert asked == [LIMIT]


def test_closing_and_opening_are_each_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line when orders begin to be refused, one when it is over."""
    sizes = iter([0, LIMIT, LIMIT, 0, 0])
    counting(monkeypatch, lambda: next(sizes))
    backlog = admission.Backlog(LIMIT)
    with json_logs() as lines:
        assert [backlog.is_full() for _ in range(5)] == [False, True, True, False, False]
        said = [line["event"] for line in lines() if line["event"].startswith("admission")]
    assert said == ["admission_closed", "admission_open"]
