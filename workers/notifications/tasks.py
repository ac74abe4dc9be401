"""The notifications queue's task."""

from celery import shared_task

from shared.contracts.queues import TaskName
from shared.contracts.waybill import Waybill
from shared.messaging.step import Outcome, Step
from workers.notifications import operations


@shared_task(name=TaskName.NOTIFY, base=Step)
def send(waybill: Waybill) -> Outcome:
    """Tell the customer how the order ended."""
    return operations.send(waybill)
