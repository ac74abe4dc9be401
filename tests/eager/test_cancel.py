"""Cancelling leaves the same trace wherever the order stood: tombstones in every service, the customer told once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shared.contracts.saga import COMPENSATIONS, SAGA
from shared.contracts.waybill import Waybill
from shared.database import get_database
from shared.errors import Transient
from shared.redis_client import redis_client
from tests.eager.conftest import Saga
from workers.delivery.models import Booking, BookingStatus
from workers.notifications.channels import LogChannel
from workers.payments.models import Payment, PaymentStatus

STEPS = [step.task for step in SAGA]


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What left the house for the customer, by order and kind; a repetition would be a second message."""
    sent: list[tuple[str, str]] = []
    send = LogChannel.send

    def noted(channel: LogChannel, key: str, message: dict[str, Any]) -> None:
        sent.append((message["order_id"], message["kind"]))
        send(channel, key, message)

    monkeypatch.setattr(LogChannel, "send", noted)
    return sent


def place_and_stop(saga: Saga, done: int) -> Waybill:
    """An order of which so many steps are done, and the message of the next one is late."""
    waybill = saga.store()
    for step in STEPS[:done]:
        saga.run(step, waybill)
    return waybill


def complete(saga: Saga) -> Waybill:
    """An order that is delivered and told."""
    waybill = place_and_stop(saga, len(STEPS))
    saga.drain()
    assert saga.status(waybill.order_id) == "COMPLETED"
    return waybill


def parked_at_payment(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> Waybill:
    """Parked before any money moved."""
    waybill = saga.store()
    with monkeypatch.context() as patch:
        patch.setattr(saga.gateway, "charge", _broken)
        saga.run(STEPS[0], waybill)
    saga.drain()
    assert saga.status(waybill.order_id) == "AWAITING_PAYMENT"
    return waybill


def parked_after_the_money_moved(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> Waybill:
    """Parked because nobody heard that the provider took the charge."""
    charge = saga.gateway.charge

    def deaf(*arguments: Any) -> Any:
        charge(*arguments)
        raise Transient("timeout")

    waybill = saga.store()
    with monkeypatch.context() as patch:
        patch.setattr(saga.gateway, "charge", deaf)
        saga.run(STEPS[0], waybill)
    saga.drain()
    assert saga.status(waybill.order_id) == "AWAITING_PAYMENT"
    return waybill


def parked_at_delivery(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> Waybill:
    """Paid, and parked while a courier was sought."""
    waybill = saga.store()
    saga.run(STEPS[0], waybill)
    with monkeypatch.context() as patch:
        patch.setattr("workers.delivery.operations._seek", _broken)
        saga.run(STEPS[1], waybill)
    saga.drain()
    assert saga.status(waybill.order_id) == "AWAITING_DISPATCH"
    return waybill


def _broken(*_: Any) -> None:
    raise RuntimeError("a bug")


Point = Callable[[Saga, pytest.MonkeyPatch], Waybill]
#: Where an order can stand when it is cancelled, and how many charges the provider has of it then.
POINTS: dict[str, tuple[Point, int]] = {
    "before the first step": (lambda saga, _: place_and_stop(saga, 0), 0),
    "after the charge": (lambda saga, _: place_and_stop(saga, 1), 1),
    "after the courier was booked": (lambda saga, _: place_and_stop(saga, 2), 1),
    "after the customer was told": (lambda saga, _: place_and_stop(saga, 3), 1),
    "after it was completed": (lambda saga, _: complete(saga), 1),
    "parked at the payment": (parked_at_payment, 0),
    "parked with the money taken": (parked_after_the_money_moved, 1),
    "parked at the delivery": (parked_at_delivery, 1),
}
everywhere = pytest.mark.parametrize(("point", "charges"), POINTS.values(), ids=POINTS)


def assert_undone(saga: Saga, waybill: Waybill, charges: int) -> None:
    """Check the order, the provider's ledger and every service's own table."""
    saga.drain()
    order_id = waybill.order_id
    assert saga.status(order_id) == "CANCELLED"
    assert saga.money == (charges, charges)
    assert saga.booked == 0
    with get_database("payments").transaction() as session:
        payment = session.get_one(Payment, order_id)
    assert payment.status == (PaymentStatus.REFUNDED if charges else PaymentStatus.VOIDED)
    assert payment.cancelled
    with get_database("delivery").transaction() as session:
        assert session.get_one(Booking, order_id).status == BookingStatus.RELEASED


@everywhere
@pytest.mark.parametrize("times", [1, 2])
def test_wherever_it_stands_everything_is_undone_and_told_once(
    saga: Saga, monkeypatch: pytest.MonkeyPatch, sent: list[tuple[str, str]], point: Point, charges: int, times: int
) -> None:
    """CANCELLED, net 0 at the provider, the booking released, one message to the customer; asking twice is no more."""
    waybill = point(saga, monkeypatch)
    for _ in range(times):
        saga.cancel(waybill.order_id)
        redis_client().flushall()  # what decides are the tables, not what Redis can replay
    assert_undone(saga, waybill, charges)
    assert sent.count((waybill.order_id, "cancelled")) == 1
    assert saga.events(waybill.order_id).count("order.cancel_requested") == 1
    saga.cancel(waybill.order_id)
    assert_undone(saga, waybill, charges)
    assert sent.count((waybill.order_id, "cancelled")) == 1


@everywhere
@pytest.mark.parametrize("rerun", STEPS[:2])
def test_a_step_that_comes_late_does_nothing(
    saga: Saga, monkeypatch: pytest.MonkeyPatch, sent: list[tuple[str, str]], point: Point, charges: int, rerun: str
) -> None:
    """Whatever was still in a queue meets a tombstone: nobody is charged or booked."""
    waybill = point(saga, monkeypatch)
    saga.cancel(waybill.order_id)
    saga.drain()
    before = list(sent)
    redis_client().flushall()
    with monkeypatch.context() as patch:
        patch.setattr(saga.gateway, "charge", _broken)
        saga.run(rerun, waybill)
    assert_undone(saga, waybill, charges)
    assert sent == before


@pytest.mark.parametrize("inside", ["charge", "refund", "lookup"])
def test_cancelling_from_inside_a_call_of_the_provider(
    saga: Saga, monkeypatch: pytest.MonkeyPatch, sent: list[tuple[str, str]], inside: str
) -> None:
    """While the provider is asked for something the order is cancelled, again."""
    waybill = parked_after_the_money_moved(saga, monkeypatch) if inside == "lookup" else place_and_stop(saga, 0)
    if inside == "refund":
        saga.run(STEPS[0], waybill)
    real = getattr(saga.gateway, inside)

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(saga.gateway, inside, real)
        redis_client().flushall()  # or the copy within would wait for the lease of the one around it
        saga.cancel(waybill.order_id)
        redis_client().flushall()
        return real(*arguments)

    monkeypatch.setattr(saga.gateway, inside, overtaken)
    if inside == "charge":
        saga.run(STEPS[0], waybill)
    else:
        saga.cancel(waybill.order_id)
    assert_undone(saga, waybill, 1)
    assert sent == [(waybill.order_id, "cancelled")]


@everywhere
def test_no_lease_outlives_its_step(saga: Saga, monkeypatch: pytest.MonkeyPatch, point: Point, charges: int) -> None:
    """A step that had nothing to undo lets the next copy run: asking again need not wait for a lease to expire."""
    waybill = point(saga, monkeypatch)
    saga.cancel(waybill.order_id)
    client = redis_client()
    held = {key: client.get(key) for step in COMPENSATIONS for key in client.keys(f"waybill:step:*/{step}*")}
    assert [key for key, value in held.items() if value and value.startswith(b"leased:")] == []
