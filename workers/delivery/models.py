"""The delivery tables: couriers, and one booking per order."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, Index, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.database import UtcDateTime, utc_now


class Base(DeclarativeBase):
    """The delivery database."""


class BookingStatus(StrEnum):
    """SEEKING: no courier was free yet. RELEASED: cancelled, also before there was a courier (a tombstone)."""

    SEEKING = "SEEKING"
    ASSIGNED = "ASSIGNED"
    UNASSIGNABLE = "UNASSIGNABLE"
    RELEASED = "RELEASED"


class Courier(Base):
    """Somebody who delivers in one area; ``capacity`` is how many open bookings they take, None for any number."""

    __tablename__ = "couriers"
    __table_args__ = (Index("couriers_by_load", "area", "open_bookings", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    area: Mapped[str] = mapped_column(String(64))
    capacity: Mapped[int | None]
    active: Mapped[bool] = mapped_column(default=True)
    open_bookings: Mapped[int] = mapped_column(default=0)


class Booking(Base):
    """What became of an order's delivery."""

    __tablename__ = "bookings"

    order_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    status: Mapped[str] = mapped_column(String(16), default=BookingStatus.SEEKING)
    courier_id: Mapped[str | None] = mapped_column(ForeignKey("couriers.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, onupdate=utc_now)
