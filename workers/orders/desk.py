"""``celery -A workers dlq``, with what the orders service knows about each dead letter."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from shared.contracts.events import EventType
from shared.contracts.saga import Dispatch
from shared.database import get_database
from shared.deadletters.commands import make_commands
from shared.deadletters.desk import Entry
from shared.errors import Transient, WaybillError
from workers.orders import operations
from workers.orders.models import Order, OrderEvent
from workers.orders.status import FINAL

_PAGE = 500  # orders asked about at once


class Records:
    """Answers the desk from the orders database."""

    def errors(self, task_ids_by_order: Mapping[str, Collection[str]]) -> Mapping[str, str]:
        """Look up the parked steps, a page of orders at a time."""
        orders, found = list(task_ids_by_order), {}
        with _named(), get_database("orders").transaction() as session:
            for start in range(0, len(orders), _PAGE):
                parked = select(OrderEvent.data).where(
                    OrderEvent.order_id.in_(orders[start : start + _PAGE]), OrderEvent.type == EventType.STEP_PARKED
                )
                found.update({data.get("task_id"): data.get("error") for data in session.scalars(parked)})
        wanted = {task_id for task_ids in task_ids_by_order.values() for task_id in task_ids}
        return {task_id: error for task_id, error in found.items() if task_id in wanted and error}

    def timeline(self, order_id: str) -> list[Entry]:
        """Read it."""
        with _named():
            return [Entry(event.time, event.type, event.data) for event in operations.timeline(order_id) or ()]

    def correlation_ids(self, order_ids: Collection[str]) -> Mapping[str, str]:
        """Look them up, a page of orders at a time."""
        orders = list(order_ids)
        found: dict[str, str] = {}
        with _named(), get_database("orders").transaction() as session:
            for start in range(0, len(orders), _PAGE):
                page = select(Order.id, Order.correlation_id).where(Order.id.in_(orders[start : start + _PAGE]))
                found.update({row.id: row.correlation_id for row in session.execute(page)})
        return found

    def cancel(self, order_id: str) -> Dispatch | None:
        """Cancel as a customer would, unless the order is done."""
        with _named():
            order = operations.find(order_id)
            if order is None or order.status in FINAL:
                return None
            cancelled = operations.cancel(order_id)
        return cancelled[1] if cancelled else None


@contextmanager
def _named() -> Iterator[None]:
    """Say which variable leads to the database that cannot be asked."""
    try:
        yield
    except (Transient, DBAPIError) as error:
        reason = str(error.orig if isinstance(error, DBAPIError) else error).strip().partition("\n")[0]
        raise WaybillError(f"ORDERS_DATABASE_URL: {reason}. Start the database or correct the variable.") from error


dlq = make_commands(Records())
