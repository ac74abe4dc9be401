"""The delivery queue's tasks."""

from celery import shared_task

from shared.contracts.queues import TaskName
from shared.contracts.waybill import Waybill
from shared.messaging.step import Outcome, Step
from workers.delivery import operations


@shared_task(name=TaskName.ASSIGN, base=Step)
def assign(waybill: Waybill) -> Outcome:
    """Book a courier."""
    return operations.assign(waybill)


@shared_task(name=TaskName.RELEASE, base=Step)
def release(waybill: Waybill) -> Outcome:
    """Free the courier."""
    return operations.release(waybill)
