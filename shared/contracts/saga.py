"""The saga, as data: what is done for an order, in which order, and how each step is undone.

A step is added by adding its line. Steps are named by string, so that no service imports another.
"""

from dataclasses import dataclass
from enum import StrEnum

from celery import Signature, signature

from shared.contracts.events import Event, EventType
from shared.contracts.queues import TaskName
from shared.contracts.waybill import Waybill


class Status(StrEnum):
    """Where an order stands. COMPLETED and CANCELLED are final."""

    PENDING = "PENDING"
    AWAITING_PAYMENT = "AWAITING_PAYMENT"
    PAID = "PAID"
    AWAITING_DISPATCH = "AWAITING_DISPATCH"
    COMPLETED = "COMPLETED"
    CANCELLING = "CANCELLING"
    NEEDS_ATTENTION = "NEEDS_ATTENTION"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class SagaStep:
    """One step: its task, the event that says it is done, its compensation, the status while it is parked."""

    task: str
    done: str
    compensation: str | None = None
    parked: Status | None = None


SAGA = (
    SagaStep(TaskName.CHARGE, EventType.PAYMENT_CAPTURED, TaskName.REFUND, Status.AWAITING_PAYMENT),
    SagaStep(TaskName.ASSIGN, EventType.DELIVERY_ASSIGNED, TaskName.RELEASE, Status.AWAITING_DISPATCH),
    SagaStep(TaskName.NOTIFY, EventType.CUSTOMER_NOTIFIED),
)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What is to be published to drive an order on: ``events``, then the chain, the one that undoes it for ``back``."""

    waybill: Waybill
    back: bool = False
    events: tuple[Event, ...] = ()


#: What an order must have to be COMPLETED: a failing notification never touches the status.
ESSENTIAL = tuple(step for step in SAGA if step.parked)
COMPENSATIONS = tuple(step.compensation for step in reversed(SAGA) if step.compensation)


def forward(waybill: Waybill) -> Signature:
    """Return the chain that fulfils the order, from its first step."""
    return _chain([step.task for step in SAGA], waybill)


def backward(waybill: Waybill) -> Signature:
    """Return the chain that undoes whatever was done, states ``order.cancelled`` and tells the customer."""
    return _chain([*COMPENSATIONS, TaskName.CANCEL, TaskName.NOTIFY], waybill)


def _chain(tasks: list[str], waybill: Waybill) -> Signature:
    """Link ``tasks`` as ``celery.chain`` does on the wire: the first message carries the rest, last one first.

    Built by hand because ``celery.chain`` runs eagerly in a loop of its own that a declined step cannot stop.
    """
    first, *rest = map(str, tasks)  # Celery would take an enum member for a task object
    return signature(first, args=(waybill.to_dict(),), options={"chain": [signature(task) for task in reversed(rest)]})
