"""``Prefer: wait=N``: what a client says, and requests that wait together."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.waiting import Waiting, preferred_wait
from shared.errors import Transient
from tests.support import wait_until
from workers.orders import listing
from workers.orders.models import Order


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=10", 10),
        ("wait=0", 0),
        ("Wait=5", 5),
        ('wait="7"', 7),
        ("wait=10; foo=bar", 10),
        ("respond-async, wait=3", 3),
        ("return=minimal,wait=3", 3),
        ("wait=31", 30),
        ("wait=" + "9" * 5000, 30),
        ("respond-async", 0),
        ("", None),
        ("wait", None),
        ("wait=", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=soon", None),
        ("wait=²", None),
        ("return=minimal", None),
        ('wait="', None),
        (",,=;=,", None),
    ],
)
def test_a_preference_is_read_and_nonsense_ignored(header: str, seconds: int | None) -> None:
    """RFC 7240: preferences may be ignored; at most 30 seconds."""
    assert preferred_wait(header) == seconds


class Orders:
    """The orders database, seen by who waits."""

    def __init__(self) -> None:
        self.completed: set[str] = set()
        self.asked: list[list[str]] = []
        self.broken = False

    def by_ids(self, order_ids: Sequence[str]) -> list[Order]:
        """Answer, or fail."""
        self.asked.append(sorted(order_ids))
        if self.broken:
            raise Transient("database: gone")
        return [Order(id=id, status="COMPLETED" if id in self.completed else "PAID") for id in order_ids]


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> Orders:
    """Orders that complete when a test says so."""
    orders = Orders()
    monkeypatch.setattr(listing, "by_ids", orders.by_ids)
    return orders


def waiting(most: int = 8) -> Waiting:
    """A process's waiting requests."""
    return Waiting(most, lambda order: order.status == "COMPLETED")


def nobody_looks() -> bool:
    """Say whether the thread that looks has ended."""
    return not any(thread.name == "waiting" for thread in threading.enumerate())


def test_requests_that_wait_share_one_look(orders: Orders) -> None:
    """Each gets its own order as soon as it is settled; the thread ends with the last."""
    together = waiting()
    with ThreadPoolExecutor() as pool:
        results = [pool.submit(together.wait, Order(id=id, status="PENDING"), 10) for id in "abca"]
        wait_until(lambda: ["a", "b", "c"] in orders.asked)
        orders.completed.add("b")
        assert results[1].result(5)[0].status == "COMPLETED"
        assert not results[0].done()
        orders.completed |= {"a", "c"}
        assert [result.result(5)[0].id for result in results] == ["a", "b", "c", "a"]
    wait_until(nobody_looks)


def test_at_the_end_of_its_time_a_request_gets_the_order_as_it_is(orders: Orders) -> None:
    """As it is now, not as it was placed."""
    started = time.monotonic()
    order, waited = waiting().wait(Order(id="a", status="PENDING"), 0.3)
    assert (order.status, waited) == ("PAID", True)
    assert time.monotonic() - started >= 0.3
    wait_until(nobody_looks)


def test_a_database_that_is_away_for_a_while_costs_no_answer(orders: Orders) -> None:
    """Looking goes on."""
    orders.broken = True
    orders.completed.add("a")
    with ThreadPoolExecutor() as pool:
        result = pool.submit(waiting().wait, Order(id="a", status="PENDING"), 10)
        wait_until(lambda: len(orders.asked) > 1)
        orders.broken = False
        assert result.result(5)[0].status == "COMPLETED"
    wait_until(nobody_looks)


def test_only_so_many_wait_at_once(orders: Orders) -> None:
    """The threads of a process must stay free for others; who finds no room is answered at once."""
    few = waiting(most=1)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(few.wait, Order(id="a", status="PENDING"), 10)
        wait_until(lambda: orders.asked)
        order, waited = few.wait(Order(id="b", status="PENDING"), 10)
        assert (order.id, order.status, waited) == ("b", "PENDING", False)
        orders.completed.add("a")
        assert first.result(5)[1]
    wait_until(nobody_looks)
