"""Assign and release: one booking per order, the least busy courier, and tombstones."""

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared.contracts.waybill import Waybill
from shared.database import get_database
from shared.errors import Declined, Waiting
from shared.messaging.step import Outcome
from tests.conftest import UseSettings
from tests.support import BODY, new_waybill
from workers.delivery import operations
from workers.delivery.models import Booking, BookingStatus, Courier


def hire(*couriers: tuple[str, str, int | None], **more: Any) -> None:
    """Add couriers: id, area, capacity."""
    with get_database("delivery").transaction() as session:
        session.add_all(Courier(id=id_, name=id_, area=area, capacity=room, **more) for id_, area, room in couriers)


def loads() -> dict[str, int]:
    """Return the open bookings of each courier."""
    with get_database("delivery").transaction() as session:
        return {courier.id: courier.open_bookings for courier in session.query(Courier)}


def booking(waybill: Waybill) -> Booking:
    """Return an order's booking."""
    with get_database("delivery").transaction() as session:
        return session.get_one(Booking, waybill.order_id)


def order(area: str = "north") -> Waybill:
    """Return a waybill for an area."""
    return new_waybill(address={**BODY["address"], "area": area})


def test_an_order_gets_one_courier_however_often_it_is_assigned(house: UseSettings) -> None:
    """The same outcome each time, one open booking."""
    hire(("ada", "north", None), ("bob", "north", None))
    waybill = order()
    first, again = operations.assign(waybill), operations.assign(waybill)
    assert first == again == Outcome("delivery.assigned", data={"courier": "ada"}, stamp={"courier": "ada"})
    assert loads() == {"ada": 1, "bob": 0}


def test_the_courier_with_the_fewest_open_bookings_is_taken(house: UseSettings) -> None:
    """Orders spread evenly; who is released first is free first."""
    hire(("ada", "north", None), ("bob", "north", None), ("cyd", "south", None))
    orders = [order() for _ in range(6)]
    for each in orders:
        operations.assign(each)
    assert loads() == {"ada": 3, "bob": 3, "cyd": 0}
    freed = next(each for each in orders if booking(each).courier_id == "bob")
    operations.release(freed)
    assert operations.assign(order()).data == {"courier": "bob"}


def test_only_active_couriers_of_the_area_are_asked(house: UseSettings) -> None:
    """Who stopped working serves nobody."""
    hire(("ada", "north", None), active=False)
    hire(("bob", "south", None))
    for area in ("north", "atlantis", ""):
        with pytest.raises(Declined) as caught:
            operations.assign(order(area))
        assert (caught.value.code, caught.value.event) == ("NO_COURIER", "delivery.unassignable")


def test_an_address_without_an_area_is_served_by_nobody(house: UseSettings) -> None:
    """A waybill of an older version may lack it."""
    hire(("ada", "north", None))
    with pytest.raises(Declined, match="NO_COURIER"):
        operations.assign(new_waybill(address={}))


def test_an_unassignable_order_stays_so(house: UseSettings) -> None:
    """A courier hired later does not turn the answer, which is an event already."""
    waybill = order("atlantis")
    for _ in range(2):
        with pytest.raises(Declined, match="NO_COURIER"):
            operations.assign(waybill)
        hire((f"late{_}", "atlantis", None))
    assert booking(waybill).status == BookingStatus.UNASSIGNABLE


def test_a_full_courier_is_waited_for(house: UseSettings) -> None:
    """Waiting uses up no attempt; a release makes room."""
    hire(("ada", "north", 1))
    first, second = order(), order()
    operations.assign(first)
    with pytest.raises(Waiting) as caught:
        operations.assign(second)
    assert caught.value.retry_after > 0
    operations.release(first)
    assert operations.assign(second).data == {"courier": "ada"}
    assert loads() == {"ada": 1}


def test_no_courier_within_the_deadline_is_a_no(house: UseSettings) -> None:
    """After COURIER_DEADLINE seconds of waiting the order is unassignable."""
    house(courier_deadline=60)
    hire(("ada", "north", 1))
    operations.assign(order())
    waybill = order()
    for waited, error in ((50, Waiting), (61, Declined)):
        with pytest.raises(Waiting if waited == 50 else error):
            operations.assign(waybill)
        with get_database("delivery").transaction() as session:
            session.get_one(Booking, waybill.order_id).created_at = datetime.now(UTC) - timedelta(seconds=61)
    assert booking(waybill).status == BookingStatus.UNASSIGNABLE
    assert loads() == {"ada": 1}


def test_a_release_frees_the_courier_once(house: UseSettings) -> None:
    """Any number of times, one booking less; a late assignment is a no-op."""
    hire(("ada", "north", None))
    waybill = order()
    operations.assign(waybill)
    assert operations.release(waybill) == operations.release(waybill)
    assert operations.release(waybill) == Outcome("delivery.released", data={"courier": "ada"})
    assert loads() == {"ada": 0}
    with pytest.raises(Declined) as caught:
        operations.assign(waybill)
    assert (caught.value.code, caught.value.event) == ("CANCELLED", None)


def test_a_release_without_a_booking_leaves_a_tombstone(house: UseSettings) -> None:
    """An assignment that comes late books nobody."""
    hire(("ada", "north", None))
    waybill = order()
    assert operations.release(waybill) == Outcome()
    with pytest.raises(Declined, match="CANCELLED"):
        operations.assign(waybill)
    assert loads() == {"ada": 0}


def test_a_release_ends_the_search(house: UseSettings) -> None:
    """An order that is waiting for a courier is not given one after its cancellation."""
    hire(("ada", "north", 1))
    first, waiting = order(), order()
    operations.assign(first)
    with pytest.raises(Waiting):
        operations.assign(waiting)
    assert operations.release(waiting) == Outcome()
    operations.release(first)
    with pytest.raises(Declined, match="CANCELLED"):
        operations.assign(waiting)
    assert loads() == {"ada": 0}


@hypothesis_settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["assign", "release"]), st.integers(0, 3)), max_size=14))
def test_open_bookings_always_agree_with_the_bookings(house: UseSettings, steps: list[tuple[str, int]]) -> None:
    """Whatever runs in whatever order: a courier's count is their assigned bookings, within their capacity."""
    with get_database("delivery").transaction() as session:
        session.query(Booking).delete()
        session.query(Courier).delete()
    hire(("ada", "north", 1), ("bob", "north", 2))
    orders = [order() for _ in range(4)]
    released = set()
    for name, number in steps:
        with contextlib.suppress(Declined, Waiting):
            getattr(operations, name)(orders[number])
        released |= {number} if name == "release" else set()
        with get_database("delivery").transaction() as session:
            assigned = session.query(Booking).filter(Booking.status == BookingStatus.ASSIGNED).all()
            for courier in session.query(Courier):
                count = sum(each.courier_id == courier.id for each in assigned)
                assert courier.open_bookings == count <= (courier.capacity or 99)
        assert not {each.order_id for each in assigned} & {orders[number].order_id for number in released}
