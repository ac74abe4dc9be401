"""The check: what the stack, its databases and the provider's ledger say once everything is quiet.

``gather`` reads, ``judge`` decides and is pure. Nothing is taken from our own books that the ledger can say.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import urllib3
from sqlalchemy import func, select
from sqlalchemy.engine import Row

from shared.contracts.events import EventType
from shared.contracts.saga import Status
from shared.database import Database
from stacks.local import LocalStack
from stacks.reckoning import OrderAccount, Reckoning, reckon
from workers.delivery.models import Booking, BookingStatus, Courier
from workers.notifications.models import Notification
from workers.orders.models import Order, OrderEvent
from workers.orders.status import FINAL
from workers.payments.operations import operation_key

CHARGED_TWICE = "orders charged twice"
_PAGE_SIZE = 200
_TIMEOUT = 10.0  # seconds
_TOLD = {Status.COMPLETED: "completed", Status.CANCELLED: "cancelled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was found. Orders as the API lists them; amounts are cents."""

    orders: Mapping[str, Mapping[str, Any]]
    accepted: Collection[str] = ()
    cancelled: Collection[str] = ()  # whose cancellation was accepted
    ledger: Collection[Mapping[str, Any]] = ()
    events: Mapping[str, list[Mapping[str, Any]]] = field(default_factory=dict)  # by order, oldest first
    unsettled: Collection[str] = ()  # whose saga has something left to do
    bookings: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)  # by order: status, courier
    open_bookings: Mapping[str, int] = field(default_factory=dict)  # by courier
    told: Mapping[str, list[str]] = field(default_factory=dict)  # by order: what its customer was told
    dead_letters: Collection[str] = ()  # what each of those that remain is
    restless: Collection[str] = ()  # queues that never became empty, with their counts
    ended: Collection[str] = ()  # processes that ended by themselves, with what they said last

    def by_status(self) -> Counter[str]:
        """Count the orders by status."""
        return Counter(str(order["status"]) for order in self.orders.values())


def gather(stack: LocalStack, **seen: Collection[str]) -> Evidence:
    """Read everything; nothing may be under way. ``seen`` is what the run itself saw, by ``Evidence``'s names."""
    orders = {order["id"]: order for order in _listed(stack.api_url)}
    events: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows(stack, "orders", select(OrderEvent.order_id, OrderEvent.type, OrderEvent.time, OrderEvent.data)):
        events[row.order_id].append({"type": row.type, "time": row.time, "data": row.data})
    told: dict[str, list[str]] = defaultdict(list)
    for row in rows(stack, "notifications", select(Notification).where(Notification.sent_at.is_not(None))):
        told[row[0].order_id].append(row[0].kind)
    return Evidence(
        orders=orders,
        ledger=_get(f"{stack.psp_url}/ledger")["entries"],
        events=events,
        unsettled=[row.id for row in rows(stack, "orders", select(Order.id).where(Order.due_at.is_not(None)))],
        bookings={
            row[0].order_id: (row[0].status, row[0].courier_id) for row in rows(stack, "delivery", select(Booking))
        },
        open_bookings={
            row.id: row.open_bookings for row in rows(stack, "delivery", select(Courier.id, Courier.open_bookings))
        },
        told=told,
        **seen,
    )


def progress(stack: LocalStack) -> tuple[Counter[str], int]:
    """Return the orders by status, and how many have something left to do."""
    statuses: Counter[str] = Counter()
    left = 0
    by_status = select(Order.status, func.count(), func.count(Order.due_at)).group_by(Order.status)
    for row in rows(stack, "orders", by_status):
        status, count, due = tuple(row)
        statuses[status] += count
        left += due
    return statuses, left


def reckoned(evidence: Evidence) -> Reckoning:
    """Compare the orders with the ledger.

    A charge is an order's by its amount, which is no other order's: one under a wrong key is found as well.
    """
    owner = {order["amount_cents"]: order_id for order_id, order in evidence.orders.items()}
    entries: list[Mapping[str, Any]] = []
    for entry in evidence.ledger:
        if entry["kind"] == "charge" and (order_id := owner.get(entry["amount_cents"])):
            entries.append({**entry, "idempotency_key": operation_key("charge", order_id)})
        else:
            entries.append(entry)
    accounts = [OrderAccount.from_api(order, evidence.events.get(id_, ())) for id_, order in evidence.orders.items()]
    return reckon(accounts, entries)


def judge(evidence: Evidence) -> dict[str, list[str]]:
    """Return for each promise what breaks it; every list empty: all hold."""
    money = reckoned(evidence)
    return {
        "accepted orders that are lost": [order for order in evidence.accepted if order not in evidence.orders],
        "orders that did not end": _which(evidence, lambda order: order["status"] not in FINAL),
        "orders with something left to do": list(evidence.unsettled),
        CHARGED_TWICE: money.double_charged,
        "COMPLETED orders that are not paid": money.uncharged_completed,
        "CANCELLED orders whose money was kept": money.charged_cancelled,
        "orders charged another amount": money.wrongly_charged,
        "ledger entries of no order": money.unaccounted,
        "timelines that the ledger contradicts": money.misstated,
        "accepted cancellations not carried out": [
            order for order in evidence.cancelled if _status(evidence, order) != Status.CANCELLED
        ],
        "couriers booked for CANCELLED orders": _booked(evidence, Status.CANCELLED, booked=True),
        "COMPLETED orders without a courier": _booked(evidence, Status.COMPLETED, booked=False),
        "couriers whose open bookings are miscounted": _miscounted(evidence),
        "customers not told once how it ended": _mistold(evidence),
        "dead letters left": list(evidence.dead_letters),
        "queues that did not come to rest": list(evidence.restless),
        "processes that ended by themselves": list(evidence.ended),
    }


def settling_times(evidence: Evidence) -> list[float]:
    """Return, sorted, the seconds from each order's acceptance until its customer was told how it ended."""
    times = []
    for order_id, order in evidence.orders.items():
        told = _first_told(evidence.events.get(order_id, ()), _TOLD.get(order["status"]))
        if told:
            times.append((told - datetime.fromisoformat(order["created_at"])).total_seconds())
    return sorted(times)


def rows(stack: LocalStack, service: str, query: Any) -> list[Row[Any]]:
    """Run a query on a service's database; raises ``Transient`` while PostgreSQL is away."""
    database = Database(stack.postgres.url(service), pool_size=1)
    try:
        with database.transaction() as session:
            return list(session.execute(query).all())
    finally:
        database.engine.dispose()


def _which(evidence: Evidence, wrong: Callable[[Mapping[str, Any]], bool]) -> list[str]:
    return [f"{order_id} ({order['status']})" for order_id, order in evidence.orders.items() if wrong(order)]


def _status(evidence: Evidence, order_id: str) -> str | None:
    return str(evidence.orders[order_id]["status"]) if order_id in evidence.orders else None


def _booked(evidence: Evidence, status: Status, *, booked: bool) -> list[str]:
    """Return the orders of a status that have a courier, or have none."""
    return [
        order_id
        for order_id, order in evidence.orders.items()
        if order["status"] == status
        and (evidence.bookings.get(order_id, ("", None))[0] == BookingStatus.ASSIGNED) == booked
    ]


def _miscounted(evidence: Evidence) -> list[str]:
    real = Counter(courier for status, courier in evidence.bookings.values() if status == BookingStatus.ASSIGNED)
    return [
        f"{courier}: counts {count}, has {real[courier]}"
        for courier, count in evidence.open_bookings.items()
        if count != real[courier]
    ]


def _mistold(evidence: Evidence) -> list[str]:
    """Return the ended orders whose customer was not told that end once, in the table and on the timeline.

    A CANCELLED order may have been COMPLETED before; nothing is told of a COMPLETED one but that.
    """
    wrong = []
    for order_id, order in evidence.orders.items():
        if (ending := _TOLD.get(order["status"])) is None:
            continue
        table = evidence.told.get(order_id, [])
        stated = _told_events(evidence.events.get(order_id, ()))
        allowed = {ending, "completed"}
        for name, kinds in (("notifications", table), ("timeline", stated)):
            if kinds.count(ending) != 1 or len(kinds) != len(set(kinds)) or not allowed.issuperset(kinds):
                wrong.append(f"{order_id} ({order['status']}): {name} {kinds}")
    return wrong


def _told_events(events: Iterable[Mapping[str, Any]]) -> list[str]:
    return [event["data"].get("kind") for event in events if event["type"] == EventType.CUSTOMER_NOTIFIED]


def _first_told(events: Iterable[Mapping[str, Any]], kind: str | None) -> datetime | None:
    times = [
        event["time"]
        for event in events
        if event["type"] == EventType.CUSTOMER_NOTIFIED and event["data"].get("kind") == kind
    ]
    return min(times, default=None)


def _listed(api_url: str) -> Iterable[Mapping[str, Any]]:
    page = 1
    while results := _get(f"{api_url}/v1/orders?page={page}&page_size={_PAGE_SIZE}")["results"]:
        yield from results
        page += 1


def _get(url: str) -> Any:
    return urllib3.request("GET", url, timeout=_TIMEOUT, retries=3).json()
