"""Reconcile our payments with the provider's ledger, periodically.

Three things can be left over when everything else went wrong, and each is settled here: an attempt whose outcome
nobody learned, a cancelled payment that is still captured, a charge on the ledger that we do not account for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import select

from shared.contracts.events import Event, EventType, new_event
from shared.database import get_database, insert_new
from shared.errors import Transient
from shared.settings import get_settings
from shared.telemetry.errors import report_error
from shared.telemetry.logs import get_logger
from shared.telemetry.metrics import record_unaccounted_charge
from workers.payments import operations
from workers.payments.gateways import LedgerEntry, payment_gateway
from workers.payments.models import LedgerPosition, Payment, PaymentStatus

_BATCH = 200
_CHARGE, _REVERSAL = "charge", "reversal"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found; ``events`` are those it published."""

    settled: int
    refunded: int
    unaccounted: tuple[LedgerEntry, ...]
    events: tuple[Event, ...]


def reconcile(publish: Callable[..., None] = lambda *_: None) -> Report:
    """Settle what is left over; return what was found.

    ``publish`` is given the events of each finding before the finding is put down as dealt with, so that a crash or a
    broker that is away costs a repetition and no event. Raises ``Transient`` or ``Waiting`` when the provider cannot
    be asked; the next run goes on from there.
    """
    settled = sum(1 for payment in _unsettled() if operations.look_up(payment))
    unaccounted, events = _read_ledger(publish)
    owed = _owed()
    for payment in owed:
        try:
            operations.refund_at_provider(payment)
        except Transient:
            raise
        except Exception as error:  # one that the provider refuses must not hold up the rest
            log.exception("refund_refused", order_id=payment.order_id)
            report_error(error)
            continue
        facts = [_event(EventType.PAYMENT_CAPTURED, payment), _event(EventType.PAYMENT_REFUNDED, payment)]
        publish(*facts)
        operations.record_refund(payment.order_id)
        events += facts
    log.info("reconciled", settled=settled, refunded=len(owed), unaccounted=len(unaccounted))
    return Report(settled, len(owed), tuple(unaccounted), tuple(events))


def _unsettled() -> Sequence[Payment]:
    """Return the attempts that must have ended long ago, none that may still be under way."""
    before = datetime.now(UTC) - timedelta(seconds=4 * get_settings().gateway_timeout)
    old = Payment.attempted_at.is_(None) | (Payment.attempted_at < before)
    query = select(Payment).where(Payment.status == PaymentStatus.UNKNOWN, old).limit(_BATCH)
    with get_database("payments").transaction() as session:
        return session.scalars(query).all()


def _owed() -> Sequence[Payment]:
    query = select(Payment).where(Payment.status == PaymentStatus.CAPTURED, Payment.cancelled).limit(_BATCH)
    with get_database("payments").transaction() as session:
        return session.scalars(query).all()


def _read_ledger(publish: Callable[..., None]) -> tuple[list[LedgerEntry], list[Event]]:
    """Compare what the ledger has since the last run; return the unaccounted charges and what was published."""
    unaccounted: list[LedgerEntry] = []
    events: list[Event] = []
    while entries := payment_gateway().entries(_position(), _BATCH):
        strangers, reversed_ = _compare(entries)
        facts = [
            _event(fact, payment)
            for payment in reversed_
            for fact in (EventType.PAYMENT_CAPTURED, EventType.PAYMENT_REVERSED)
        ]
        publish(*facts)
        unaccounted += _move_on(entries[-1].seq, strangers)
        events += facts
    return unaccounted, events


def _move_on(seq: int, strangers: Sequence[LedgerEntry]) -> list[LedgerEntry]:
    """Put down how far the ledger is read and report the unaccounted charges on the way; return those.

    Another run may have been there first, a webhook's or the periodic one: nothing is reported again.
    """
    with get_database("payments").transaction() as session:
        insert_new(session, LedgerPosition, [{"id": 1, "seq": 0}])
        position = session.get_one(LedgerPosition, 1, with_for_update=True)
        new = [entry for entry in strangers if entry.seq > position.seq]
        position.seq = max(position.seq, seq)
        for entry in new:
            log.error("charge_unaccounted", operation_key=entry.operation_key, transaction_id=entry.transaction_id)
            record_unaccounted_charge()
    return new


def _compare(entries: Sequence[LedgerEntry]) -> tuple[list[LedgerEntry], list[Payment]]:
    """Bring our payments in line with a page of the ledger; return the unaccounted charges and what was reversed."""
    charges = [entry for entry in entries if entry.kind == _CHARGE]
    reversals = {entry.transaction_id for entry in entries if entry.kind == _REVERSAL}
    with get_database("payments").transaction() as session:
        of_ours = select(Payment).where(
            Payment.operation_key.in_([entry.operation_key for entry in charges])
            | Payment.transaction_id.in_(reversals)
        )
        payments = session.scalars(of_ours.order_by(Payment.order_id).with_for_update()).all()
        by_key = {payment.operation_key: payment for payment in payments}
        unaccounted = [entry for entry in charges if not _accounted(by_key.get(entry.operation_key), entry)]
        reversed_ = [payment for payment in payments if payment.transaction_id in reversals]
        for payment in reversed_:
            payment.status = PaymentStatus.REVERSED
    return unaccounted, reversed_


def _accounted(payment: Payment | None, entry: LedgerEntry) -> bool:
    """Bring a payment in line with its charge; False when there is none, or another charge has its place."""
    if payment is None:
        return False
    if payment.transaction_id is None and payment.status in (PaymentStatus.UNKNOWN, PaymentStatus.VOIDED):
        payment.status, payment.transaction_id = PaymentStatus.CAPTURED, entry.transaction_id
    return payment.transaction_id == entry.transaction_id


def _position() -> int:
    with get_database("payments").transaction() as session:
        known = session.get(LedgerPosition, 1)
        return known.seq if known else 0


def _event(event_type: str, payment: Payment) -> Event:
    data = operations.money_of(payment)
    return new_event(event_type, payment.order_id, source="payments", correlation_id="", data=data)
