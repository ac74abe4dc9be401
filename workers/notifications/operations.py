"""Tell the customer how their order ended, once for each ending."""

from datetime import UTC, datetime

from shared.contracts.events import EventType
from shared.contracts.queues import TaskName
from shared.contracts.waybill import Waybill
from shared.database import get_database, insert_new
from shared.messaging.step import Outcome
from workers.notifications.channels import channel
from workers.notifications.models import Notification

COMPLETED, CANCELLED = "completed", "cancelled"


def send(waybill: Waybill) -> Outcome:
    """Send the message for the chain this waybill travels on: fulfilled, or cancelled and undone."""
    kind = CANCELLED if TaskName.CANCEL in waybill.stamps else COMPLETED
    if kind == COMPLETED and _was_cancelled(waybill):
        return Outcome()
    if not _is_sent(waybill, kind):
        message = {"kind": kind, "order_id": waybill.order_id, "customer_id": waybill.customer_id}
        channel().send(f"{waybill.order_id}-{kind}", message)
        _mark_sent(waybill, kind)
    return Outcome(EventType.CUSTOMER_NOTIFIED, data={"kind": kind}, discriminator=kind)


def _was_cancelled(waybill: Waybill) -> bool:
    """Say whether the customer is being told of the cancellation: news of the fulfilment would come too late."""
    with get_database("notifications").transaction() as session:
        return session.get(Notification, (waybill.order_id, CANCELLED)) is not None


def _is_sent(waybill: Waybill, kind: str) -> bool:
    row = {"order_id": waybill.order_id, "kind": kind, "customer_id": waybill.customer_id}
    with get_database("notifications").transaction() as session:
        insert_new(session, Notification, [row])
        return session.get_one(Notification, (waybill.order_id, kind)).sent_at is not None


def _mark_sent(waybill: Waybill, kind: str) -> None:
    with get_database("notifications").transaction() as session:
        session.get_one(Notification, (waybill.order_id, kind)).sent_at = datetime.now(UTC)
