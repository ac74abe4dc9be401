"""What a timeline says about an order's money and its way to the customer. Pure, like the fold of the status."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from shared.contracts.events import EventType
from workers.orders.models import Order, OrderEvent

#: The later line wins: what was refunded was captured before.
_PAYMENT = {
    EventType.PAYMENT_DECLINED: "DECLINED",
    EventType.PAYMENT_CAPTURED: "CAPTURED",
    EventType.PAYMENT_REFUNDED: "REFUNDED",
    EventType.PAYMENT_REVERSED: "REVERSED",
}
_DELIVERY = {
    EventType.DELIVERY_UNASSIGNABLE: "UNASSIGNABLE",
    EventType.DELIVERY_ASSIGNED: "ASSIGNED",
    EventType.DELIVERY_PICKED_UP: "PICKED_UP",
    EventType.DELIVERY_DELIVERED: "DELIVERED",
    EventType.DELIVERY_RELEASED: "RELEASED",
}


def payment(order: Order, events: Iterable[OrderEvent]) -> dict[str, Any]:
    """Return what became of the money; amounts are cents."""
    times = _times(events)
    return {
        "status": _latest(_PAYMENT, times),
        "transaction_id": order.transaction_id,
        "amount_cents": order.amount_cents,
        "currency": order.currency,
        "captured_at": times.get(EventType.PAYMENT_CAPTURED),
        "refunded_at": times.get(EventType.PAYMENT_REFUNDED),
        "reversed_at": times.get(EventType.PAYMENT_REVERSED),
    }


def delivery(order: Order, events: Iterable[OrderEvent]) -> dict[str, Any]:
    """Return how far the goods are."""
    times = _times(events)
    return {
        "status": _latest(_DELIVERY, times),
        "courier": order.courier,
        "assigned_at": times.get(EventType.DELIVERY_ASSIGNED),
        "picked_up_at": times.get(EventType.DELIVERY_PICKED_UP),
        "delivered_at": times.get(EventType.DELIVERY_DELIVERED),
        "released_at": times.get(EventType.DELIVERY_RELEASED),
    }


def _times(events: Iterable[OrderEvent]) -> dict[str, datetime]:
    """Return when each type of event happened, the first time."""
    return {event.type: event.time for event in sorted(events, key=lambda each: each.time, reverse=True)}


def _latest(table: dict[EventType, str], times: dict[str, datetime]) -> str | None:
    return next((said for event, said in reversed(table.items()) if event in times), None)
