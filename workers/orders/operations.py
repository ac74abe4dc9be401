"""What can be done with orders: place, find, record what happened to them, take those that are due.

No use case here talks to the broker; whoever calls publishes after the commit, and the sweeper publishes again
whatever was not.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from shared.contracts.events import Event, EventType, new_event
from shared.contracts.saga import Dispatch, Status
from shared.contracts.waybill import Waybill, parse_waybill
from shared.database import get_database, insert_new
from shared.settings import get_settings
from workers.orders.idempotency import Answer, RequestKey, claim
from workers.orders.models import Order as Order  # noqa: PLC0414 - what the use cases hand out
from workers.orders.models import OrderEvent
from workers.orders.status import BACKWARD, CAUSES, FINAL, PARKED, Picture, fold

SOURCE = "orders"
_OUR_SOURCES = frozenset({"api", SOURCE})
_BACKOFF_DOUBLINGS = 6  # the sweeper's waits grow to 2**6 times SWEEP_AFTER


def place(
    details: dict[str, Any],
    correlation_id: str,
    *,
    owner: str = "",
    request: RequestKey | None = None,
    answer: Callable[[Order], Answer] | None = None,
) -> tuple[Order, Dispatch]:
    """Store a PENDING order of ``owner`` with its first event and the request's key, in one transaction.

    ``answer`` makes what the request is answered, where that is known now. Raises what ``idempotency.claim`` raises.
    """
    waybill = Waybill(order_id=str(uuid.uuid4()), correlation_id=correlation_id, **details)
    placed = _placed(waybill)
    order = Order(
        id=waybill.order_id,
        owner=owner,
        customer_id=waybill.customer_id,
        status=Status.PENDING,
        amount_cents=waybill.amount_cents,
        currency=waybill.currency,
        waybill=waybill.to_dict(),
        correlation_id=correlation_id,
        due_at=placed.time + timedelta(seconds=get_settings().sweep_after),
        created_at=placed.time,
        updated_at=placed.time,
    )
    with get_database("orders").transaction() as session:
        if request:
            claim(session, request, order.id, answer and answer(order))
        session.add(order)
        session.flush()  # the event refers to the order
        insert_new(session, OrderEvent, [_row(placed)])
    return order, Dispatch(waybill, events=(placed,))


def find(order_id: str, owner: str | None = None) -> Order | None:
    """Return an order, or None; with ``owner`` only one of theirs."""
    with get_database("orders").transaction() as session:
        return _of(owner, session.get(Order, order_id))


def find_with_events(order_id: str, owner: str | None = None) -> tuple[Order, Sequence[OrderEvent]] | None:
    """Return an order and its events, oldest first; None when there is no such order, or not of ``owner``."""
    with get_database("orders").transaction() as session:
        order = _of(owner, session.get(Order, order_id))
        if order is None:
            return None
        in_time = select(OrderEvent).where(OrderEvent.order_id == order_id).order_by(OrderEvent.time, OrderEvent.id)
        return order, session.scalars(in_time).all()


def timeline(order_id: str) -> Sequence[OrderEvent] | None:
    """Return an order's events, oldest first; None when there is no such order."""
    found = find_with_events(order_id)
    return found and found[1]


def record(events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
    """Apply a batch of events in one transaction.

    Returns the conclusions to publish (``order.completed``; again each time until it is on the timeline, so a crash
    before publishing loses none) and the events whose order does not exist.
    """
    by_order: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        by_order[event.subject].append(event)
    conclusions: list[Event] = []
    with get_database("orders").transaction() as session:
        orders = _lock(session, list(by_order))
        known = _events_of(session, list(orders))
        fresh: dict[str, Event] = {}
        for order_id, order in orders.items():
            # reversed: of a fact stated twice in one batch the first keeps its time
            new = {each.id: each for each in reversed(by_order[order_id]) if each.id not in known[order_id]}
            fresh |= new
            conclusions += _apply(order, [*known[order_id].values(), *new.values()], moved=bool(new))
        insert_new(session, OrderEvent, [_row(event) for event in fresh.values()])
    return conclusions, [event for event in events if event.subject not in orders]


def cancel(
    order_id: str,
    *,
    owner: str | None = None,
    request: RequestKey | None = None,
    answer: Callable[[Order], Answer] | None = None,
) -> tuple[Order, Dispatch] | None:
    """Ask for an order to be undone, at any moment; None when there is no such order, or not of ``owner``.

    Asking again changes nothing; the chain that undoes it may be published again all the same. Raises what
    ``idempotency.claim`` raises.
    """
    with get_database("orders").transaction() as session:
        order = _of(owner, _lock(session, [order_id]).get(order_id))
        if order is None:
            return None
        known = _events_of(session, [order_id])[order_id]
        requested = _fact(EventType.ORDER_CANCEL_REQUESTED, order)
        turned = order.status not in BACKWARD
        if turned:
            insert_new(session, OrderEvent, [_row(requested)])
            _apply(order, [*known.values(), requested], moved=True)
        if request:
            session.flush()  # the answer shows the row as it is stored
            claim(session, request, order_id, answer and answer(order))
        return order, Dispatch(parse_waybill(order.waybill), back=True, events=(requested,) if turned else ())


def take_due(limit: int) -> list[Dispatch]:
    """Take orders whose ``due_at`` has passed and put off their next look, in one short transaction.

    Any number of sweepers may run: each takes other rows.
    """
    now = datetime.now(UTC)
    with get_database("orders").transaction() as session:
        due = select(Order).where(Order.due_at <= now).order_by(Order.due_at).limit(limit)
        orders = session.scalars(due.with_for_update(skip_locked=True)).all()
        known = _events_of(session, [order.id for order in orders])
        return [_put_off(session, order, list(known[order.id].values()), now) for order in orders]


def wake_all() -> None:
    """Make every unsettled order due now: for a start with a broker that forgot all its messages."""
    with get_database("orders").transaction() as session:
        session.execute(update(Order).where(Order.due_at.is_not(None)).values(due_at=datetime.now(UTC)))


def _of(owner: str | None, order: Order | None) -> Order | None:
    return order if order and owner in (None, order.owner) else None


def _lock(session: Session, order_ids: Sequence[str]) -> dict[str, Order]:
    """Lock orders, always in the same order so that two recorders cannot deadlock."""
    rows = session.scalars(select(Order).where(Order.id.in_(order_ids)).order_by(Order.id).with_for_update())
    return {order.id: order for order in rows}


def _events_of(session: Session, order_ids: Sequence[str]) -> dict[str, dict[str, OrderEvent]]:
    known: dict[str, dict[str, OrderEvent]] = {order_id: {} for order_id in order_ids}
    for event in session.scalars(select(OrderEvent).where(OrderEvent.order_id.in_(order_ids))):
        known[event.order_id][event.id] = event
    return known


def _apply(order: Order, events: Sequence[Event | OrderEvent], *, moved: bool) -> list[Event]:
    picture, now = fold(events), datetime.now(UTC)
    if moved:
        turned_from_outside = picture.failure == CAUSES[EventType.PAYMENT_REVERSED] and order.status not in BACKWARD
        order.status, order.failure = picture.status, picture.failure
        order.transaction_id, order.courier = picture.transaction_id, picture.courier
        order.sweeps = 0
        order.due_at = _next_look(order, picture, now)
        if turned_from_outside:
            order.due_at = now  # no step of ours knows; the sweeper starts the way back
    if picture.status == Status.COMPLETED and not any(event.type == EventType.ORDER_COMPLETED for event in events):
        return [_fact(EventType.ORDER_COMPLETED, order)]
    return []


def _next_look(order: Order, picture: Picture, now: datetime) -> datetime | None:
    """Return when the sweeper shall look at an order, None when its saga has nothing left to do."""
    settings = get_settings()
    if picture.settled:
        return None
    if picture.status in PARKED:  # an operator's until the deadline
        return order.created_at + timedelta(seconds=settings.order_deadline)
    doublings = min(order.sweeps, _BACKOFF_DOUBLINGS)
    return now + timedelta(seconds=settings.sweep_after * 2**doublings)


def _put_off(session: Session, order: Order, events: Sequence[OrderEvent], now: datetime) -> Dispatch:
    picture = fold(events)
    publish = tuple(_as_stated(order, event) for event in events if event.source in _OUR_SOURCES)
    deadline = order.created_at + timedelta(seconds=get_settings().order_deadline)
    if picture.status not in BACKWARD | FINAL and now >= deadline:
        expired = _fact(EventType.ORDER_EXPIRED, order)
        insert_new(session, OrderEvent, [_row(expired)])
        publish += (expired,)
        picture = fold([*events, expired])
        order.status, order.failure = picture.status, picture.failure
    order.sweeps += 1
    order.due_at = _next_look(order, picture, now)
    return Dispatch(parse_waybill(order.waybill), back=picture.status in BACKWARD, events=publish)


def _placed(waybill: Waybill) -> Event:
    data = {"amount_cents": waybill.amount_cents, "currency": waybill.currency}
    return new_event(
        EventType.ORDER_PLACED, waybill.order_id, source="api", correlation_id=waybill.correlation_id, data=data
    )


def _as_stated(order: Order, row: OrderEvent) -> Event:
    """Return an event of the timeline as it was stated; what the API and we state may not have been published yet."""
    return Event(row.id, row.type, row.order_id, row.source, row.time, order.correlation_id, row.data)


def _fact(event_type: str, order: Order) -> Event:
    return new_event(event_type, order.id, source=SOURCE, correlation_id=order.correlation_id)


def _row(event: Event) -> dict[str, Any]:
    return {
        "id": event.id,
        "order_id": event.subject,
        "type": event.type,
        "source": event.source,
        "time": event.time,
        "data": dict(event.data),
    }


def backlog(limit: int) -> int:
    """Count the orders on their way, up to ``limit``; those that are parked are an operator's, and wait for nobody."""
    with get_database("orders").transaction() as session:
        moving = Order.status.in_((Status.PENDING, Status.PAID, Status.CANCELLING))
        under_way = select(Order.id).where(moving).limit(limit)
        return session.scalar(select(func.count()).select_from(under_way.subquery())) or 0
