"""The status of an order: a fold over the set of its events, the same in whatever order they arrived.

Pure: no clock, no database. The tables below are the whole of the rules.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from shared.contracts.events import EventType
from shared.contracts.saga import COMPENSATIONS, ESSENTIAL, Status

#: Each of these turns the order round, whatever else happened before or after; the first present is the failure shown.
CAUSES: dict[str, str] = {
    EventType.PAYMENT_DECLINED: "PAYMENT_FAILED",
    EventType.DELIVERY_UNASSIGNABLE: "NO_COURIER",
    EventType.PAYMENT_REVERSED: "PAYMENT_REVERSED",
    EventType.ORDER_EXPIRED: "EXPIRED",
    EventType.ORDER_CANCEL_REQUESTED: "CANCEL_REQUESTED",
}
PARKED = frozenset({Status.AWAITING_PAYMENT, Status.AWAITING_DISPATCH})
BACKWARD = frozenset({Status.CANCELLING, Status.NEEDS_ATTENTION, Status.CANCELLED})
FINAL = frozenset({Status.COMPLETED, Status.CANCELLED})
#: What the customer is told at each end; the saga has nothing left to do once they were.
_TOLD = {Status.COMPLETED: "completed", Status.CANCELLED: "cancelled"}


class Fact(Protocol):
    """The part of an event that the fold reads."""

    @property
    def type(self) -> str:
        """Return the event's type."""

    @property
    def data(self) -> Mapping[str, Any]:
        """Return what it states."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What the events of an order amount to."""

    status: Status
    settled: bool  # nothing left to do, the customer was told
    failure: str | None = None
    transaction_id: str | None = None
    courier: str | None = None


def fold(events: Iterable[Fact]) -> Picture:
    """Return what a set of events amounts to; order and repetition make no difference."""
    facts = list(events)
    types = {fact.type for fact in facts}
    status = _status(types, _said(facts, EventType.STEP_PARKED, "step"))
    told = _said(facts, EventType.CUSTOMER_NOTIFIED, "kind")
    return Picture(
        status=status,
        settled=status in _TOLD and _TOLD[status] in told,
        failure=next((code for cause, code in CAUSES.items() if cause in types), None),
        transaction_id=_first(facts, EventType.PAYMENT_CAPTURED, "transaction_id"),
        courier=_first(facts, EventType.DELIVERY_ASSIGNED, "courier"),
    )


def _status(types: set[str], parked: set[str]) -> Status:
    if EventType.ORDER_CANCELLED in types:
        return Status.CANCELLED
    if not types.isdisjoint(CAUSES):
        return Status.NEEDS_ATTENTION if not parked.isdisjoint(COMPENSATIONS) else Status.CANCELLING
    for step in ESSENTIAL:
        if step.done not in types:
            before = Status.PAID if EventType.PAYMENT_CAPTURED in types else Status.PENDING
            return step.parked if step.parked and step.task in parked else before
    return Status.COMPLETED


def _first(facts: list[Fact], event: str, field: str) -> str | None:
    """Return a field of the event of a type; the smallest, should there ever be two, so that order cannot matter."""
    return min(_said(facts, event, field), default=None)


def _said(facts: list[Fact], event: str, field: str) -> set[str]:
    """Return what the events of a type say in a field."""
    return {str(fact.data[field]) for fact in facts if fact.type == event and field in fact.data}
