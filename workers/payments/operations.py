"""Charge and refund an order, any number of times, with one effect.

The operation key is committed before the provider is asked, so whatever dies in between leaves a row that says
"ask the provider". No transaction is open while the provider is.
"""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from shared.contracts.events import EventType
from shared.contracts.waybill import Waybill
from shared.database import get_database, insert_new
from shared.errors import Declined, Waiting
from shared.messaging.step import Outcome
from shared.settings import get_settings
from workers.payments.gateways import Charge, payment_gateway
from workers.payments.models import Payment, PaymentStatus

_KEYS = uuid.UUID("5f0c8f0e-5c50-5f0e-9d0e-1d1d9a3c7b11")
CANCELLED = "CANCELLED"
_OVER = (PaymentStatus.VOIDED, PaymentStatus.REFUNDED, PaymentStatus.REVERSED)


def charge(waybill: Waybill) -> Outcome:
    """Capture the order's amount once; raise ``Declined`` if the provider or a cancellation says no."""
    payment = _begin_attempt(waybill)
    if payment.status == PaymentStatus.UNKNOWN:
        gateway = payment_gateway()
        if payment.cancelled:
            _wait_for_attempt(payment)
            answer = gateway.lookup(payment.operation_key)
        else:
            answer = gateway.charge(
                payment.operation_key, payment.amount_cents, payment.currency, payment.payment_method
            )
        payment = _settle(payment.order_id, answer)
    if payment.cancelled or payment.status in _OVER:
        raise Declined(CANCELLED, event=None)
    if payment.status == PaymentStatus.DECLINED:
        raise Declined(payment.failure_code or "PAYMENT_FAILED", event=EventType.PAYMENT_DECLINED)
    return Outcome(EventType.PAYMENT_CAPTURED, money_of(payment), stamp={"transaction_id": payment.transaction_id})


def refund(waybill: Waybill) -> Outcome:
    """Undo the charge, or see to it that there will be none; wait for a charge that is under way."""
    payment = _cancel(waybill)
    if payment.status == PaymentStatus.UNKNOWN:
        _wait_for_attempt(payment)
        payment = _settle(payment.order_id, payment_gateway().lookup(payment.operation_key))
    if payment.status == PaymentStatus.CAPTURED:
        refund_at_provider(payment)
        payment = record_refund(payment.order_id)
    if payment.status != PaymentStatus.REFUNDED:
        return Outcome()
    # the charging step may have ended before it learned of the capture
    captured = (EventType.PAYMENT_CAPTURED, money_of(payment))
    return Outcome(EventType.PAYMENT_REFUNDED, money_of(payment), learned=[captured])


def refund_at_provider(payment: Payment) -> None:
    """Have the provider give back a captured payment; any number of times."""
    if payment.transaction_id is None:
        raise ValueError(f"payment of order {payment.order_id} is captured without a transaction")
    payment_gateway().refund(operation_key("refund", payment.order_id), payment.transaction_id)


def record_refund(order_id: str) -> Payment:
    """Record that the provider gave a payment back."""
    with get_database("payments").transaction() as session:
        payment = session.get_one(Payment, order_id, with_for_update=True)
        payment.status = PaymentStatus.REFUNDED
    return payment


def look_up(payment: Payment) -> bool:
    """Settle an attempt whose outcome nobody learned; False when the provider never saw it and it may come again."""
    answer = payment_gateway().lookup(payment.operation_key)
    if answer is None and not payment.cancelled:
        return False
    _settle(payment.order_id, answer)
    return True


def money_of(payment: Payment) -> dict[str, Any]:
    """Return what an event about a payment states."""
    return {
        "transaction_id": payment.transaction_id,
        "amount_cents": payment.amount_cents,
        "currency": payment.currency,
    }


def operation_key(operation: str, order_id: str) -> str:
    """Return the key under which the provider knows an operation of an order."""
    return f"{operation}-{uuid.uuid5(_KEYS, f'{operation}/{order_id}')}"


def _begin_attempt(waybill: Waybill) -> Payment:
    """Commit that the provider is about to be asked; the row as it then stands decides what happens."""
    with get_database("payments").transaction() as session:
        payment = _lock(session, waybill, PaymentStatus.UNKNOWN)
        if payment.status == PaymentStatus.UNKNOWN and not payment.cancelled:
            payment.attempted_at = datetime.now(UTC)
    return payment


def _cancel(waybill: Waybill) -> Payment:
    """Mark the payment as cancelled; without one, leave a tombstone that stops a charge that comes late."""
    with get_database("payments").transaction() as session:
        payment = _lock(session, waybill, PaymentStatus.VOIDED)
        payment.cancelled = True
    return payment


def _lock(session: Session, waybill: Waybill, initial: PaymentStatus) -> Payment:
    row = {
        "order_id": waybill.order_id,
        "operation_key": operation_key("charge", waybill.order_id),
        "amount_cents": waybill.amount_cents,
        "currency": waybill.currency,
        "payment_method": waybill.payment_method,
        "status": initial,
    }
    insert_new(session, Payment, [row])
    return session.get_one(Payment, waybill.order_id, with_for_update=True)


def _wait_for_attempt(payment: Payment) -> None:
    """Until a call under way must have ended, its outcome cannot be looked up: it may still arrive."""
    longest = timedelta(seconds=2 * get_settings().gateway_timeout)
    if payment.attempted_at and (left := payment.attempted_at + longest - datetime.now(UTC)) > timedelta():
        raise Waiting("a charge of this order is under way", left.total_seconds() + 1)


def _settle(order_id: str, answer: Charge | None) -> Payment:
    """Record what the provider said, unless it is recorded already."""
    with get_database("payments").transaction() as session:
        payment = session.get_one(Payment, order_id, with_for_update=True)
        if answer and answer.transaction_id and payment.status in (PaymentStatus.UNKNOWN, PaymentStatus.VOIDED):
            payment.status, payment.transaction_id = PaymentStatus.CAPTURED, answer.transaction_id
        elif payment.status == PaymentStatus.UNKNOWN:
            payment.status = PaymentStatus.DECLINED if answer else PaymentStatus.VOIDED
            payment.failure_code = answer.failure_code if answer else None
    return payment
