"""Lists of orders: by page, by cursor, filtered, each caller's own."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event

from shared.database import get_database
from tests.conftest import UseSettings
from tests.support import new_body
from workers.orders import listing, operations
from workers.orders.listing import Cursor, Filter, Page
from workers.orders.models import Order

EVERYBODYS = Filter()


def place(owner: str = "") -> Order:
    """Place an order of a caller."""
    return operations.place(new_body(), "corr-1", owner=owner)[0]


def ids(page: Page) -> list[str]:
    """Return which orders a page shows."""
    return [order.id for order in page.results]


def test_pages_cover_every_order_once_newest_first(house: UseSettings) -> None:
    """With the count of all, and no next after the last."""
    orders = [place().id for _ in range(5)]
    pages = [listing.page(EVERYBODYS, number, 2) for number in (1, 2, 3, 4)]
    assert [page.count for page in pages] == [5] * 4
    assert [id for page in pages for id in ids(page)] == orders[::-1]
    assert [page.next is None for page in pages] == [False, False, True, True]


def test_a_cursor_leads_through_the_whole_list(house: UseSettings) -> None:
    """Every order once, even those of the same instant, whatever is added at the head meanwhile."""
    orders = [place() for _ in range(5)]
    with get_database("orders").transaction() as session:
        session.query(Order).update({Order.created_at: orders[0].created_at})
    page = listing.page(EVERYBODYS, 1, 2)
    seen = ids(page)
    while page.next:
        place()
        page = listing.after(EVERYBODYS, Cursor.parse(str(page.next)), 2)
        seen += ids(page)
    assert seen == sorted((order.id for order in orders), reverse=True)
    assert page.count is None


def test_orders_are_filtered(house: UseSettings) -> None:
    """By owner, status and age, together."""
    mine, other = place("me"), place("you")
    later = mine.created_at + timedelta(microseconds=1)
    assert ids(listing.page(Filter(owner="me"), 1, 9)) == [mine.id]
    assert ids(listing.page(Filter(status="PENDING"), 1, 9)) == [other.id, mine.id]
    assert ids(listing.page(Filter(status="COMPLETED"), 1, 9)) == []
    assert ids(listing.page(Filter(created_before=later), 1, 9)) == [mine.id]
    assert ids(listing.page(Filter(created_after=mine.created_at), 1, 9)) == [other.id]
    assert listing.page(Filter(owner="me", created_after=mine.created_at), 1, 9).count == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "äöü",
        "====",
        *(
            base64.urlsafe_b64encode(plain.encode()).decode()
            for plain in (
                "",
                "/",
                "2026-01-01/" + "0" * 31,
                "2026-01-01T00:00:00+00:00/\x00",
                "0001-01-01T00:00:00+14:00/00000000-0000-0000-0000-000000000000",
                "9999-12-31T23:59:59-14:00/00000000-0000-0000-0000-000000000000",
            )
        ),
    ],
)
def test_what_is_no_cursor_is_told(text: str) -> None:
    """A client may send anything."""
    with pytest.raises(ValueError, match=r".*"):
        Cursor.parse(text)


def test_a_cursor_survives_its_way_through_a_client() -> None:
    """To the microsecond, in letters that need no quoting in a URL."""
    cursor = Cursor(datetime(2026, 5, 1, 3, 4, 5, 678901, tzinfo=UTC), "00000000-0000-0000-0000-000000000001")
    assert Cursor.parse(str(cursor)) == cursor
    assert str(cursor).replace("-", "").replace("_", "").isalnum()


def test_a_list_takes_two_queries_and_a_cursor_one(house: UseSettings) -> None:
    """However many orders it shows."""
    for _ in range(5):
        place()
    statements: list[str] = []
    engine = get_database("orders").engine
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    first = listing.page(EVERYBODYS, 1, 3)
    assert first.next
    assert len([line for line in statements if line.startswith("SELECT")]) == 2
    statements.clear()
    listing.after(EVERYBODYS, first.next, 3)
    assert len([line for line in statements if line.startswith("SELECT")]) == 1
