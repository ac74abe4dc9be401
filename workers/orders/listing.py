"""Find orders: lists by page and by cursor, what waiting requests look at."""

import re
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from sqlalchemy import Select, func, literal, select, tuple_

from shared.database import UtcDateTime, get_database
from workers.orders.models import Order

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the list, after one order: it stays where it is whatever is added at the head."""

    created_at: datetime
    order_id: str

    #: Fourteen digits of microseconds and a UUID: whatever looks like a cursor is one.
    PATTERN: ClassVar[str] = "[0-9a-f]{46}"

    def __str__(self) -> str:
        """Return it as a client carries it; opaque to them."""
        return f"{(self.created_at - _EPOCH) // _MICROSECOND:014x}{uuid.UUID(self.order_id).hex}"

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Read one; raise ``ValueError`` for what never was one."""
        if not re.fullmatch(cls.PATTERN, text):
            raise ValueError("no cursor")
        return cls(_EPOCH + int(text[:14], 16) * _MICROSECOND, str(uuid.UUID(text[14:])))


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which orders; None means any."""

    owner: str | None = None
    status: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def apply(self, query: Select[Order]) -> Select[Order]:
        """Return the query for these orders only."""
        if self.owner is not None:
            query = query.where(Order.owner == self.owner)
        if self.status is not None:
            query = query.where(Order.status == self.status)
        if self.created_after is not None:
            query = query.where(Order.created_at > self.created_after)
        if self.created_before is not None:
            query = query.where(Order.created_at < self.created_before)
        return query


@dataclass(frozen=True, slots=True)
class Page:
    """Some orders, newest first; ``next`` leads on, None at the end; ``count`` is how many there are in all."""

    results: Sequence[Order]
    next: Cursor | None
    count: int | None = None


def page(which: Filter, number: int, size: int) -> Page:
    """Return a page by its number, and the count. Far pages are slow, ``after`` is not."""
    with get_database("orders").transaction() as session:
        found = session.scalars(_newest(which).offset((number - 1) * size).limit(size + 1)).all()
        count = session.scalar(select(func.count()).select_from(which.apply(select(Order)).subquery())) or 0
    return _page(found, size, count)


def after(which: Filter, cursor: Cursor, size: int) -> Page:
    """Return the orders that follow a cursor: one look into an index, however far it is."""
    older = tuple_(Order.created_at, Order.id) < tuple_(literal(cursor.created_at, UtcDateTime), cursor.order_id)
    with get_database("orders").transaction() as session:
        found = session.scalars(_newest(which).where(older).limit(size + 1)).all()
    return _page(found, size)


def by_ids(order_ids: Collection[str]) -> Sequence[Order]:
    """Return orders by their ids, in one query."""
    with get_database("orders").transaction() as session:
        return session.scalars(select(Order).where(Order.id.in_(order_ids))).all()


def _newest(which: Filter) -> Select[Order]:
    return which.apply(select(Order)).order_by(Order.created_at.desc(), Order.id.desc())


def _page(found: Sequence[Order], size: int, count: int | None = None) -> Page:
    results = found[:size]
    more = Cursor(results[-1].created_at, results[-1].id) if len(found) > size else None
    return Page(results, more, count)
