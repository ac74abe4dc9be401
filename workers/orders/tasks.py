"""The orders queue's tasks."""

from typing import Any

from celery import Task, shared_task

from shared.contracts.events import EventType
from shared.contracts.queues import TaskName
from shared.contracts.waybill import Waybill
from shared.messaging.periodic import Periodic
from shared.messaging.step import Outcome, Step
from workers.orders import sweeper


@shared_task(name=TaskName.CANCEL, base=Step)
def cancel(waybill: Waybill) -> Outcome:  # noqa: ARG001 - that every compensation before it succeeded is all there is
    """State that the order is cancelled: everything that was done for it is undone."""
    return Outcome(EventType.ORDER_CANCELLED, stamp={"undone": True})


@shared_task(name=TaskName.SWEEP, bind=True, base=Periodic)
def sweep(self: Task[Any, Any], *_: Any) -> int:
    """Drive on the orders that are due, and forget what is old."""
    swept = sweeper.sweep(self.app)
    sweeper.forget_old()
    return swept
