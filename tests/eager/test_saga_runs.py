"""An order's way: fulfilled, declined, retried, parked; and what a repetition changes, which is nothing."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from shared.contracts import saga as table
from shared.contracts.queues import TaskName
from shared.errors import Transient
from tests.eager.conftest import Saga
from tests.support import event, new_waybill
from workers.notifications.channels import LogChannel


def failing(real: Callable[..., Any], times: int, error: Exception) -> Callable[..., Any]:
    """Return a function that raises a number of times before it works."""
    left = [times]

    def call(*args: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return real(*args)

    return call


def test_an_order_completes(saga: Saga) -> None:
    """Charged, assigned, notified, completed; the row shows transaction and courier."""
    order_id = saga.place()
    order = saga.order(order_id)
    assert (order["status"], order["failure"]) == ("COMPLETED", None)
    assert order["courier"].startswith("cou-")
    assert [entry.transaction_id for entry in saga.gateway.entries(0, 9)] == [order["transaction_id"]]
    assert saga.events(order_id) == [
        *("order.placed", "payment.captured", "delivery.assigned", "customer.notified", "order.completed"),
    ]
    assert (saga.money, saga.booked, saga.told(order_id)) == ((1, 0), 1, ["completed"])


def test_a_declined_card_cancels(saga: Saga) -> None:
    """Nothing was captured, nobody booked, the customer is told."""
    order_id = saga.place(payment_method="tok_declined")
    order = saga.order(order_id)
    assert (order["status"], order["failure"]) == ("CANCELLED", "PAYMENT_FAILED")
    assert saga.events(order_id) == ["order.placed", "payment.declined", "order.cancelled", "customer.notified"]
    assert (saga.money, saga.booked, saga.told(order_id)) == ((0, 0), 0, ["cancelled"])


def test_an_area_nobody_serves_is_refunded_and_cancelled(saga: Saga) -> None:
    """What was captured is given back before the order counts as cancelled."""
    order_id = saga.place(address__area="atlantis")
    order = saga.order(order_id)
    assert (order["status"], order["failure"]) == ("CANCELLED", "NO_COURIER")
    assert saga.events(order_id) == [
        "order.placed",
        "payment.captured",
        "delivery.unassignable",
        "payment.refunded",
        "order.cancelled",
        "customer.notified",
    ]
    assert (saga.money, saga.booked, saga.told(order_id)) == ((1, 1), 0, ["cancelled"])


def test_a_provider_that_fails_twice_is_asked_again(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ``step.retrying`` on the timeline, then all goes on; one charge."""
    monkeypatch.setattr(saga.gateway, "charge", failing(saga.gateway.charge, 2, Transient("HTTP 503")))
    order_id = saga.place()
    assert saga.status(order_id) == "COMPLETED"
    retries = [each["data"] for each in saga.timeline(order_id) if each["type"] == "step.retrying"]
    assert [(each["step"], each["attempt"]) for each in retries] == [("payments.charge", 1), ("payments.charge", 2)]
    assert all(each["error"] == "Transient: HTTP 503" and each["delay"] >= 1 for each in retries)
    assert saga.money == (1, 0)


@pytest.mark.parametrize(
    ("task", "module", "operation", "status"),
    [
        ("payments.charge", "workers.payments.operations", "charge", "AWAITING_PAYMENT"),
        ("delivery.assign", "workers.delivery.operations", "assign", "AWAITING_DISPATCH"),
        ("notifications.send", "workers.notifications.operations", "send", "COMPLETED"),
    ],
)
@pytest.mark.parametrize(("error", "attempts"), [(Transient("HTTP 503"), 4), (KeyError("a bug"), 1)])
def test_a_step_that_cannot_go_on_is_parked(
    saga: Saga,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    module: str,
    operation: str,
    status: str,
    error: Exception,
    attempts: int,
) -> None:
    """Retries spent, or a bug at once: the order is parked, never cancelled; a notification touches nothing."""
    monkeypatch.setattr(f"{module}.{operation}", failing(lambda: None, 99, error))
    order_id = saga.place()
    assert saga.status(order_id) == status
    (parked,) = [each["data"] for each in saga.timeline(order_id) if each["type"] == "step.parked"]
    assert (parked["step"], parked["attempts"]) == (task, attempts)
    assert parked["error"].startswith(type(error).__name__)
    assert "operations" in parked["traceback"] or "test_saga_runs" in parked["traceback"]
    assert saga.events(order_id).count("step.retrying") == attempts - 1
    assert "order.cancelled" not in saga.events(order_id)


def test_a_parked_step_that_runs_again_goes_on(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a requeued dead letter does: the order continues where it stopped."""
    with monkeypatch.context() as patch:
        patch.setattr(saga.gateway, "charge", failing(saga.gateway.charge, 99, KeyError("a bug")))
        order_id = saga.place()
    assert saga.status(order_id) == "AWAITING_PAYMENT"
    saga.run(TaskName.CHARGE, new_waybill(order_id=order_id))
    saga.drain()
    assert saga.status(order_id) == "PAID"


@pytest.mark.parametrize("changes", [{}, {"payment_method": "tok_declined"}, {"address__area": "atlantis"}])
@pytest.mark.parametrize("flushed", [False, True])
def test_running_the_whole_chain_again_changes_nothing(saga: Saga, changes: dict[str, str], flushed: bool) -> None:
    """Same order, same events, same ledger, same bookings; with Redis's memory and without."""
    order_id = saga.place(**changes)
    saga.place()  # somebody else's, to be left alone
    before = saga.order(order_id), saga.timeline(order_id), saga.money, saga.booked, saga.told(order_id)
    first = {each["id"] for each in saga.published()}
    for _ in range(2):
        if flushed:
            from shared.redis_client import redis_client  # noqa: PLC0415 - this test's own

            redis_client().flushall()
        stored = new_waybill(order_id=order_id, **_fields(changes))
        table.forward(stored).apply_async()
        saga.drain()
    assert (saga.order(order_id), saga.timeline(order_id), saga.money, saga.booked, saga.told(order_id)) == before
    assert {each["id"] for each in saga.published()} <= first


def _fields(changes: dict[str, str]) -> dict[str, Any]:
    """Return the changes as fields of a waybill."""
    from tests.support import new_body  # noqa: PLC0415 - used here alone

    return new_body(**changes)


def test_the_correlation_id_goes_all_the_way(saga: Saga) -> None:
    """From the request's header into the answer, the order and every event."""
    answer = saga.client.post("/v1/orders", json=_fields({}), headers={"X-Correlation-ID": "shop-4711"})
    saga.drain()
    assert answer.headers["X-Correlation-ID"] == "shop-4711"
    assert saga.order(answer.json["id"])["correlation_id"] == "shop-4711"
    published = saga.published()
    assert len(published) >= 5
    assert {each["correlationid"] for each in published} == {"shop-4711"}


@pytest.mark.parametrize("given", [None, "", "x" * 65, "a b", "ä", "<script>"])
def test_without_a_good_correlation_id_one_is_made(saga: Saga, given: str | None) -> None:
    """A UUID of our own; what was sent is not passed on."""
    headers = {} if given is None else {"X-Correlation-ID": given}
    answer = saga.client.post("/v1/orders", json=_fields({}), headers=headers)
    assert uuid.UUID(answer.headers["X-Correlation-ID"])
    assert answer.json["correlation_id"] == answer.headers["X-Correlation-ID"]


def test_events_of_unknown_orders_end_in_the_dead_letters(saga: Saga) -> None:
    """With the rest of their batch recorded."""
    from shared.messaging.events import publish_events  # noqa: PLC0415 - used here alone

    orphan = event(str(uuid.uuid4()), "payment.captured", {"transaction_id": "txn_1"})
    known = saga.store()
    publish_events(saga.app, orphan, event(known.order_id, "payment.captured", {"transaction_id": "txn_2"}))
    saga.drain()
    (dead,) = saga.take("orders.events.dlq")
    assert dead.payload["id"] == orphan.id
    assert saga.status(known.order_id) == "PAID"


@pytest.mark.parametrize(
    ("body", "content_type", "encoding"),
    [
        (b"{", "application/json", "utf-8"),
        (b"{}", "application/json", "utf-8"),
        (b"[1]", "application/cloudevents+json", "utf-8"),
        (b"\xff\xfe", "application/json", "utf-8"),
        (b"cos\nsystem\n(S'true'\ntR.", "application/x-python-serialize", "binary"),
        (b"<event/>", "text/xml", "utf-8"),
        (b"[" * 100_000, "application/json", "utf-8"),
    ],
)
def test_what_is_no_event_ends_in_the_dead_letters(saga: Saga, body: bytes, content_type: str, encoding: str) -> None:
    """The recorder keeps it, unread, and goes on with the others."""
    with saga.app.connection_for_write() as connection:
        connection.Producer().publish(
            body, exchange="", routing_key="orders.events", content_type=content_type, content_encoding=encoding
        )
    order_id = saga.place()
    assert saga.status(order_id) == "COMPLETED"
    with saga.app.connection_for_read() as connection:
        assert connection.default_channel.queue_declare("orders.events.dlq", passive=True).message_count == 1


def test_the_notification_is_sent_once_for_each_end(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completed, then cancelled after all: two messages, each once, whatever is repeated."""
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(LogChannel, "send", lambda _self, key, message: sent.append((key, message["kind"])))
    order_id = saga.place()
    for _ in range(2):
        table.forward(new_waybill(order_id=order_id)).apply_async()
        saga.cancel(order_id)
        saga.drain()
    assert sent == [(f"{order_id}-completed", "completed"), (f"{order_id}-cancelled", "cancelled")]
    assert saga.status(order_id) == "CANCELLED"
