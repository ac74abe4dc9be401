"""What the outside world tells us by webhook: which messages were received, and what a courier states of an order.

A message is put down as received after its effect is published, so a crash in between costs a repetition of what may
be repeated, and no effect.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import Enum, auto
from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from shared.contracts.events import Event, event_id
from shared.database import UtcDateTime, delete_before, get_database, insert_if_new
from workers.orders.models import Base, Order

_COURIER = "courier"


class WebhookReceipt(Base):
    """A message that was received: its sender's id for it, and when its latest attempt was signed."""

    __tablename__ = "webhook_receipts"
    __table_args__ = (Index("webhook_receipts_by_age", "signed_at"),)

    source: Mapped[str] = mapped_column(String(16), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    signed_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Receipt(Enum):
    """What a message is to us: NEW, RETRIED by its sender, or a REPLAYED copy of what they signed before."""

    NEW = auto()
    RETRIED = auto()
    REPLAYED = auto()


def look_up(source: str, webhook_id: str, signed_at: datetime) -> Receipt:
    """Say what a message is, before anything is done for it."""
    with get_database("orders").transaction() as session:
        known = session.get(WebhookReceipt, (source, webhook_id))
        return _judge(known, signed_at) if known else Receipt.NEW


def put_down(source: str, webhook_id: str, signed_at: datetime) -> Receipt:
    """Put a message down as received and say what it was; of copies that arrive at once, one is NEW."""
    row = {"source": source, "webhook_id": webhook_id, "signed_at": signed_at}
    with get_database("orders").transaction() as session:
        if insert_if_new(session, WebhookReceipt, row):
            return Receipt.NEW
        known = session.get_one(WebhookReceipt, (source, webhook_id), with_for_update=True)
        receipt = _judge(known, signed_at)
        known.signed_at = max(known.signed_at, signed_at)
        return receipt


def courier_event(event_type: str, order_id: str, time: datetime, data: Mapping[str, Any]) -> Event | None:
    """Return the event by which a courier states a fact about an order, None when there is no such order.

    ``time`` is the courier's. One fact of a type for each order: stated again, it is the same event.
    """
    with get_database("orders").transaction() as session:
        order = session.get(Order, order_id)
    if order is None:
        return None
    return Event(
        id=event_id(order_id, event_type),
        type=event_type,
        subject=order_id,
        source=_COURIER,
        time=time,
        correlation_id=order.correlation_id,
        data=data,
    )


def forget_receipts(before: datetime, limit: int) -> int:
    """Delete at most ``limit`` receipts of messages signed before a time; return how many."""
    with get_database("orders").transaction() as session:
        return delete_before(session, WebhookReceipt.signed_at, before, limit)


def _judge(known: WebhookReceipt, signed_at: datetime) -> Receipt:
    return Receipt.RETRIED if signed_at > known.signed_at else Receipt.REPLAYED
