"""Every exchange, queue and task name, once.

A task's name is ``<service>.<verb>`` and its queue is the service's name, so a route never needs a table.
"""

from enum import StrEnum

TASKS_EXCHANGE = "waybill.tasks"
DEAD_LETTER_EXCHANGE = "waybill.dlx"
EVENTS_EXCHANGE = "waybill.events"
EVENTS_QUEUE = "orders.events"
AUDIT_STREAM = "waybill.audit"


class Queue(StrEnum):
    """The services' task queues."""

    PAYMENTS = "payments"
    DELIVERY = "delivery"
    NOTIFICATIONS = "notifications"
    ORDERS = "orders"


class TaskName(StrEnum):
    """The tasks that travel over the queues."""

    CHARGE = "payments.charge"
    REFUND = "payments.refund"
    RECONCILE = "payments.reconcile"
    ASSIGN = "delivery.assign"
    RELEASE = "delivery.release"
    NOTIFY = "notifications.send"
    CANCEL = "orders.cancel"
    SWEEP = "orders.sweep"


def queue_of(task: str) -> str:
    """Return the queue that serves ``task``: the part before the dot."""
    return task.partition(".")[0]


def dead_letter_queue(queue: str) -> str:
    """Return the name of the queue that keeps what ``queue`` could not process."""
    return f"{queue}.dlq"
