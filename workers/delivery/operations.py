"""Book a courier for an order and release them, any number of times, with one effect."""

from datetime import UTC, datetime

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from shared.contracts.events import EventType
from shared.contracts.waybill import Waybill
from shared.database import get_database, insert_new
from shared.errors import Declined, Waiting
from shared.messaging.step import Outcome
from shared.settings import get_settings
from workers.delivery.models import Booking, BookingStatus, Courier

UNASSIGNABLE = "NO_COURIER"
CANCELLED = "CANCELLED"
_ASK_AGAIN = 5.0  # seconds until a busy area is asked for a courier again


def assign(waybill: Waybill) -> Outcome:
    """Book the courier with the fewest open bookings in the order's area.

    Raises ``Waiting`` while all are busy; ``Declined`` when nobody serves the area, none came free within
    ``COURIER_DEADLINE`` seconds, or the order was cancelled.
    """
    with get_database("delivery").transaction() as session:
        booking = _lock(session, waybill, BookingStatus.SEEKING)
        if booking.status == BookingStatus.SEEKING:
            _seek(session, booking, waybill.address.get("area", ""))
        status, courier_id = booking.status, booking.courier_id
    if status == BookingStatus.SEEKING:
        raise Waiting("every courier of the area is busy", _ASK_AGAIN)
    if status == BookingStatus.UNASSIGNABLE:
        raise Declined(UNASSIGNABLE, event=EventType.DELIVERY_UNASSIGNABLE)
    if status == BookingStatus.RELEASED:
        raise Declined(CANCELLED, event=None)
    return Outcome(EventType.DELIVERY_ASSIGNED, data={"courier": courier_id}, stamp={"courier": courier_id})


def release(waybill: Waybill) -> Outcome:
    """Free the order's courier; without a booking, leave a tombstone that stops one that comes late."""
    with get_database("delivery").transaction() as session:
        booking = _lock(session, waybill, BookingStatus.RELEASED)
        if booking.status == BookingStatus.ASSIGNED:
            courier = session.get_one(Courier, booking.courier_id, with_for_update=True)
            courier.open_bookings -= 1
        booking.status = BookingStatus.RELEASED
        courier_id = booking.courier_id
    if courier_id is None:
        return Outcome()
    return Outcome(EventType.DELIVERY_RELEASED, data={"courier": courier_id})


def _lock(session: Session, waybill: Waybill, initial: BookingStatus) -> Booking:
    insert_new(session, Booking, [{"order_id": waybill.order_id, "status": initial}])
    return session.get_one(Booking, waybill.order_id, with_for_update=True)


def _seek(session: Session, booking: Booking, area: str) -> None:
    courier = session.scalar(
        select(Courier)
        .where(
            Courier.area == area,
            Courier.active,
            or_(Courier.capacity.is_(None), Courier.open_bookings < Courier.capacity),
        )
        .order_by(Courier.open_bookings, Courier.id)
        .limit(1)
        .with_for_update()
    )
    if courier is not None:
        courier.open_bookings += 1
        booking.courier_id, booking.status = courier.id, BookingStatus.ASSIGNED
        return
    served = session.scalar(select(exists().where(Courier.area == area, Courier.active)))
    waited = (datetime.now(UTC) - booking.created_at).total_seconds()
    if not served or waited > get_settings().courier_deadline:
        booking.status = BookingStatus.UNASSIGNABLE
