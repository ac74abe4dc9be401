"""What the dead-letter desk needs to know about orders; the orders service answers (``workers/orders/desk.py``)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from shared.contracts.saga import Dispatch


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of an order's timeline."""

    time: datetime
    type: str
    data: Mapping[str, Any]


class OrderRecords(Protocol):
    """The orders service, as the desk sees it. Raises ``WaybillError`` when its database cannot be asked."""

    def errors(self, task_ids_by_order: Mapping[str, Collection[str]]) -> Mapping[str, str]:
        """Return, by task id, the error with which it was parked, as far as the timelines know."""

    def timeline(self, order_id: str) -> list[Entry]:
        """Return an order's events, oldest first; none when there is no such order."""

    def correlation_ids(self, order_ids: Collection[str]) -> Mapping[str, str]:
        """Return, by order id, the correlation ids of those orders that exist."""

    def cancel(self, order_id: str) -> Dispatch | None:
        """Turn an order round; return what undoes it, None when it is done already or nobody knows it."""
