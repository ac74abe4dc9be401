"""Cancelling at any moment - before, during, after each step - always ends the same: everything undone."""

from collections.abc import Callable
from typing import Any

import pytest

from shared.contracts.saga import SAGA
from shared.contracts.waybill import Waybill
from shared.errors import Transient
from tests.eager.conftest import Saga

STEPS = [step.task for step in SAGA]


def is_undone(saga: Saga, order_id: str) -> None:
    """Check that nothing is left of an order but its history."""
    saga.drain()
    order = saga.order(order_id)
    charges, refunds = saga.money
    assert (order["status"], order["failure"]) == ("CANCELLED", "CANCEL_REQUESTED")
    assert charges == refunds
    assert charges <= 1
    assert saga.booked == 0
    assert "cancelled" in saga.told(order_id)
    assert saga.events(order_id).count("order.cancelled") == 1


@pytest.mark.parametrize("done", range(len(STEPS) + 1))
@pytest.mark.parametrize("late", [True, False])
def test_cancelling_between_any_two_steps_undoes_everything(saga: Saga, done: int, late: bool) -> None:
    """After ``done`` steps the order is cancelled; the messages of the rest may still arrive, late."""
    waybill = saga.store()
    for step in STEPS[:done]:
        saga.run(step, waybill)
    saga.cancel(waybill.order_id)
    for step in STEPS[done:] if late else ():
        saga.run(step, waybill)
    is_undone(saga, waybill.order_id)
    assert saga.money == ((1, 1) if done else (0, 0))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_cancelling_during_a_step_undoes_everything(
    saga: Saga, monkeypatch: pytest.MonkeyPatch, step: str, moment: str
) -> None:
    """The cancellation overtakes the step: it runs to its end before the operation, or before its event."""
    service, verb = step.split(".")
    name = f"workers.{service}.operations.{verb}"
    real = _resolve(name)

    def overtaken(waybill: Waybill) -> Any:
        monkeypatch.setattr(name, real)
        if moment == "before":
            saga.cancel(waybill.order_id)
            return real(waybill)
        outcome = real(waybill)
        saga.cancel(waybill.order_id)
        return outcome

    monkeypatch.setattr(name, overtaken)
    is_undone(saga, saga.place())


def test_cancelling_while_the_provider_charges_undoes_everything(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refund comes back until the charge under way is settled."""
    real = saga.gateway.charge

    def slow(*args: Any) -> Any:
        monkeypatch.setattr(saga.gateway, "charge", real)
        order_id = str(saga.client.get("/v1/orders").json["results"][0]["id"])
        saga.cancel(order_id)
        return real(*args)

    monkeypatch.setattr(saga.gateway, "charge", slow)
    order_id = saga.place()
    is_undone(saga, order_id)
    assert saga.money == (1, 1)


@pytest.mark.parametrize("step", ["charge", "refund"])
def test_cancelling_goes_through_a_provider_that_fails(saga: Saga, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Time-outs after the money moved, on the way there and on the way back."""
    real, failures = getattr(saga.gateway, step), [2]

    def flaky(*args: Any) -> Any:
        answer = real(*args)
        if failures[0]:
            failures[0] -= 1
            raise Transient("timeout")
        return answer

    monkeypatch.setattr(saga.gateway, step, flaky)
    order_id = saga.place()
    saga.cancel(order_id)
    is_undone(saga, order_id)
    assert saga.money == (1, 1)


def test_cancelling_again_changes_nothing(saga: Saga) -> None:
    """The same answer, no further event."""
    order_id = saga.place()
    saga.cancel(order_id)
    saga.drain()
    before = saga.timeline(order_id)
    saga.cancel(order_id)
    is_undone(saga, order_id)
    assert saga.timeline(order_id) == before


def test_cancelling_a_declined_order_keeps_its_failure(saga: Saga) -> None:
    """The client reads why it failed first."""
    order_id = saga.place(payment_method="tok_declined")
    saga.cancel(order_id)
    saga.drain()
    assert saga.order(order_id)["failure"] == "PAYMENT_FAILED"
    assert saga.money == (0, 0)


def test_an_unknown_order_cannot_be_cancelled(saga: Saga) -> None:
    """404, nothing published."""
    assert saga.client.post("/v1/orders/00000000-0000-4000-8000-000000000000/cancel").status_code == 404
    assert saga.published() == []


def test_a_customer_who_was_told_of_the_cancellation_is_not_told_of_completion(saga: Saga) -> None:
    """A notification that comes late meets its tombstone, too."""
    waybill = saga.store()
    for step in STEPS[:-1]:
        saga.run(step, waybill)
    saga.cancel(waybill.order_id)
    saga.run(STEPS[-1], waybill)
    assert saga.told(waybill.order_id) == ["cancelled"]


def test_a_refund_that_is_parked_needs_attention_until_it_goes_through(
    saga: Saga, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is not called cancelled while money is still kept."""
    order_id = saga.place()
    with monkeypatch.context() as patch:
        patch.setattr(saga.gateway, "refund", _raise)
        saga.cancel(order_id)
        saga.drain()
        assert saga.status(order_id) == "NEEDS_ATTENTION"
        assert "order.cancelled" not in saga.events(order_id)
    saga.cancel(order_id)
    is_undone(saga, order_id)


def _raise(*_: Any) -> None:
    raise RuntimeError("refused")


def _resolve(name: str) -> Callable[[Waybill], Any]:
    from pkgutil import resolve_name  # noqa: PLC0415 - used here alone

    return resolve_name(name)  # type: ignore[no-any-return]
