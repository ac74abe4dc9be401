"""The payments tables. One row per order is the guard: its key says what may still happen."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, Index, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.database import UtcDateTime, utc_now


class Base(DeclarativeBase):
    """The payments database."""


class PaymentStatus(StrEnum):
    """What is known of an order's money.

    UNKNOWN: the provider was, or is about to be, asked and the answer is not known. VOIDED: nothing was
    captured and nothing may be any more. REVERSED: the customer's bank took the money back.
    """

    UNKNOWN = "UNKNOWN"
    CAPTURED = "CAPTURED"
    DECLINED = "DECLINED"
    REFUNDED = "REFUNDED"
    REVERSED = "REVERSED"
    VOIDED = "VOIDED"


class Payment(Base):
    """The one payment of an order. Money is integer minor units (cents)."""

    __tablename__ = "payments"
    __table_args__ = (
        Index("payments_unsettled", "attempted_at", postgresql_where=text("status = 'UNKNOWN'")),
        Index("payments_owed", "order_id", postgresql_where=text("status = 'CAPTURED' AND cancelled")),
    )

    order_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    operation_key: Mapped[str] = mapped_column(String(64), unique=True)
    amount_cents: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    payment_method: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16), default=PaymentStatus.UNKNOWN)
    transaction_id: Mapped[str | None] = mapped_column(String(64), unique=True)
    failure_code: Mapped[str | None] = mapped_column(String(64))
    cancelled: Mapped[bool] = mapped_column(default=False)
    attempted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=utc_now, onupdate=utc_now)


class LedgerPosition(Base):
    """How far the provider's ledger was compared with ours: the one row has the last line's number."""

    __tablename__ = "ledger_position"

    id: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)
