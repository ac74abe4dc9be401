"""The orders tables. The order row is the outbox and the saga record: ``due_at`` says when to look again."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.contracts.saga import Status
from shared.database import UtcDateTime, utc_now


class Base(DeclarativeBase):
    """The orders database."""


class Order(Base):
    """An accepted order. ``waybill`` is the body that travels; the rest of the row is for reading and finding.

    ``owner`` is the caller who placed it: the subject of their token.
    """

    __tablename__ = "orders"
    __table_args__ = (
        Index("orders_by_age", "created_at", "id"),
        Index("orders_by_status", "status", "created_at", "id"),
        Index("orders_by_owner", "owner", "created_at", "id"),
        Index("orders_by_owner_status", "owner", "status", "created_at", "id"),
        Index("orders_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    owner: Mapped[str] = mapped_column(String(128), default="")
    customer_id: Mapped[str] = mapped_column(String(128))
    status: Mapped[str] = mapped_column(String(24), default=Status.PENDING)
    amount_cents: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    waybill: Mapped[dict[str, Any]] = mapped_column(JSON)
    correlation_id: Mapped[str] = mapped_column(String(64))
    transaction_id: Mapped[str | None] = mapped_column(String(64))
    courier: Mapped[str | None] = mapped_column(String(64))
    failure: Mapped[str | None] = mapped_column(String(64))
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    sweeps: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, onupdate=utc_now)

    @property
    def items(self) -> list[dict[str, Any]]:
        """Return what was ordered."""
        return self.waybill["items"]  # type: ignore[no-any-return]


class OrderEvent(Base):
    """One event of an order's timeline; its id is the event's own, so a repetition is seen."""

    __tablename__ = "order_events"
    __table_args__ = (Index("order_events_timeline", "order_id", "time"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    order_id: Mapped[str] = mapped_column(ForeignKey("orders.id"))
    type: Mapped[str] = mapped_column(String(64))
    source: Mapped[str] = mapped_column(String(64))
    time: Mapped[datetime] = mapped_column(UtcDateTime)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    recorded_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)


class IdempotencyKey(Base):
    """A request that was made under a key of its caller's choice, and its answer.

    Without an answer the request is worked on until ``pending_until``; after that it is answered from the order.
    """

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("idempotency_keys_by_age", "created_at"),)

    caller: Mapped[str] = mapped_column(String(128), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    order_id: Mapped[str] = mapped_column(String(36))
    status: Mapped[int | None]
    answer: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    pending_until: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
