"""The notifications table: one row per thing the customer is told about an order."""

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.database import UtcDateTime, utc_now


class Base(DeclarativeBase):
    """The notifications database."""


class Notification(Base):
    """One message to a customer; ``sent_at`` is None until the channel took it."""

    __tablename__ = "notifications"

    order_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    customer_id: Mapped[str] = mapped_column(String(128))
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
