"""The payments queue's tasks."""

from functools import partial
from typing import Any

from celery import Task, shared_task

from shared.contracts.queues import TaskName
from shared.contracts.waybill import Waybill
from shared.messaging.events import publish_events
from shared.messaging.periodic import Periodic
from shared.messaging.step import Outcome, Step
from workers.payments import operations, reconcile


@shared_task(name=TaskName.CHARGE, base=Step)
def charge(waybill: Waybill) -> Outcome:
    """Capture the order's amount."""
    return operations.charge(waybill)


@shared_task(name=TaskName.REFUND, base=Step)
def refund(waybill: Waybill) -> Outcome:
    """Undo the charge."""
    return operations.refund(waybill)


@shared_task(name=TaskName.RECONCILE, bind=True, base=Periodic)
def compare(self: Task[Any, Any], *_: Any) -> int:
    """Bring our payments and the provider's ledger in line."""
    report = reconcile.reconcile(partial(publish_events, self.app))
    return len(report.unaccounted)
