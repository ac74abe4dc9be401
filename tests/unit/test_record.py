"""Recording events: the order row and its timeline depend on the set of events and on nothing else."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared.contracts.events import Event, EventType
from shared.contracts.queues import TaskName
from shared.contracts.saga import Status
from shared.database import get_database
from tests.conftest import UseSettings
from tests.support import BODY, event
from workers.orders import operations
from workers.orders.models import Order, OrderEvent

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
CAPTURED = (EventType.PAYMENT_CAPTURED, {"transaction_id": "txn_1"})
ASSIGNED = (EventType.DELIVERY_ASSIGNED, {"courier": "cou_1"})
TOLD = (EventType.CUSTOMER_NOTIFIED, {"kind": "completed"})
facts = st.one_of(
    st.sampled_from(EventType).map(lambda each: (each, {})),
    st.sampled_from([CAPTURED, ASSIGNED, TOLD, (EventType.CUSTOMER_NOTIFIED, {"kind": "cancelled"})]),
    st.sampled_from(TaskName).map(lambda step: (EventType.STEP_PARKED, {"step": step})),
)


def place() -> Order:
    """Store a new order."""
    return operations.place(dict(BODY), "corr-1")[0]


def found(order_id: str) -> Order:
    """Return an order as it is stored now."""
    order = operations.find(order_id)
    assert order is not None
    return order


def change(order_id: str, **columns: Any) -> None:
    """Bend the stored order, as time would."""
    with get_database("orders").transaction() as session:
        for name, value in columns.items():
            setattr(session.get_one(Order, order_id), name, value)


def row(order_id: str) -> tuple[Any, ...]:
    """Return what events decide about an order."""
    order = found(order_id)
    timeline = operations.timeline(order_id)
    assert timeline is not None
    seen = frozenset((each.id, each.type, str(each.data)) for each in timeline if each.type != "order.placed")
    return order.status, order.transaction_id, order.courier, order.failure, order.due_at is None, seen


def clear(order_id: str) -> None:
    """Take an order back to where it was placed."""
    with get_database("orders").transaction() as session:
        for each in session.query(OrderEvent).filter(OrderEvent.type != EventType.ORDER_PLACED):
            session.delete(each)
        order = session.get_one(Order, order_id)
        order.status, order.transaction_id, order.courier, order.failure = Status.PENDING, None, None, None


@hypothesis_settings(max_examples=60)
@given(st.lists(facts, min_size=1, max_size=8), st.data())
def test_any_order_repetition_and_batches_give_the_same_row(
    house: UseSettings, stated: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    """However events arrive - shuffled, repeated, in any batches - row and timeline end the same."""
    order = place()
    events = [event(order.id, kind, facts_, str(facts_)) for kind, facts_ in stated]
    operations.record(events)
    at_once = row(order.id)
    clear(order.id)
    arriving = data.draw(st.permutations(events + data.draw(st.lists(st.sampled_from(events), max_size=4))))
    while arriving:
        size = data.draw(st.integers(1, len(arriving)))
        operations.record(arriving[:size])
        arriving = arriving[size:]
    assert row(order.id) == at_once


@pytest.mark.parametrize("batches", [1, 2])
def test_a_fact_stated_again_keeps_its_first_time(house: UseSettings, batches: int) -> None:
    """A step that ran again states its event later; the timeline shows when it happened, in whatever batches."""
    order = place()
    first = event(order.id, *CAPTURED)
    again = replace(first, time=first.time + timedelta(minutes=5))
    for batch in [[first, again]] if batches == 1 else [[first], [again]]:
        operations.record(batch)
    timeline = operations.timeline(order.id)
    assert timeline
    assert [each.time for each in timeline if each.type == first.type] == [first.time]


def test_one_batch_serves_many_orders(house: UseSettings) -> None:
    """Events of several orders in one batch reach each its own."""
    first, second = place(), place()
    operations.record([event(first.id, *CAPTURED), event(second.id, EventType.PAYMENT_DECLINED)])
    assert found(first.id).status == Status.PAID
    assert found(second.id).status == Status.CANCELLING


def test_completion_is_concluded_until_it_is_on_the_timeline(house: UseSettings) -> None:
    """A crash before publishing ``order.completed`` loses nothing: any later batch concludes it again."""
    order = place()
    batch = [event(order.id, *CAPTURED), event(order.id, *ASSIGNED)]
    assert operations.record(batch[:1]) == ([], [])
    (first,), _ = operations.record(batch)
    (again,), _ = operations.record(batch)
    assert first.type == again.type == EventType.ORDER_COMPLETED
    assert (first.id, first.subject, first.correlation_id) == (again.id, order.id, "corr-1")
    assert operations.record([again]) == ([], [])
    assert operations.record(batch) == ([], [])


def test_events_of_unknown_orders_are_reported_and_the_rest_is_recorded(house: UseSettings) -> None:
    """An orphan is handed back, its batch is recorded all the same."""
    order, orphan = place(), event("00000000-0000-4000-8000-000000000000", *CAPTURED)
    assert operations.record([orphan, event(order.id, *CAPTURED)]) == ([], [orphan])
    assert found(order.id).status == Status.PAID


def test_a_placed_order_is_pending_due_and_has_its_first_event(house: UseSettings) -> None:
    """Row and ``order.placed`` come in one transaction; the sweeper looks after SWEEP_AFTER seconds."""
    house(sweep_after=7)
    order, way = operations.place(dict(BODY), "corr-9")
    (placed,) = way.events
    stored = found(order.id)
    assert (stored.status, stored.sweeps, stored.correlation_id) == (Status.PENDING, 0, "corr-9")
    assert stored.due_at == stored.created_at + timedelta(seconds=7)
    assert stored.waybill == way.waybill.to_dict()
    timeline = operations.timeline(order.id)
    assert timeline
    assert [each.id for each in timeline] == [placed.id]


def test_each_event_moves_the_next_look_on(house: UseSettings) -> None:
    """A saga that speaks is not swept: its look is SWEEP_AFTER from the last event, and starts afresh."""
    house(sweep_after=30)
    order = place()
    change(order.id, due_at=NOW, sweeps=4)
    operations.record([event(order.id, *CAPTURED)])
    stored = found(order.id)
    assert stored.due_at is not None
    left = stored.due_at - datetime.now(UTC)
    assert timedelta(seconds=25) < left <= timedelta(seconds=30)
    assert stored.sweeps == 0


def test_a_repeated_event_does_not_move_the_next_look(house: UseSettings) -> None:
    """Only news counts as a sign of life."""
    order = place()
    captured = event(order.id, *CAPTURED)
    operations.record([captured])
    change(order.id, due_at=NOW, sweeps=3)
    operations.record([captured])
    assert (found(order.id).due_at, found(order.id).sweeps) == (NOW, 3)


@pytest.mark.parametrize("ending", ["completed", "cancelled"])
def test_a_saga_with_nothing_left_to_do_is_never_looked_at(house: UseSettings, ending: str) -> None:
    """``due_at`` is cleared once the customer was told of the end, and not before."""
    order = place()
    end = [event(order.id, *CAPTURED), event(order.id, *ASSIGNED)]
    if ending == "cancelled":
        end = [event(order.id, EventType.PAYMENT_DECLINED), event(order.id, EventType.ORDER_CANCELLED)]
    operations.record(end)
    assert found(order.id).due_at is not None
    operations.record([event(order.id, EventType.CUSTOMER_NOTIFIED, {"kind": ending})])
    assert found(order.id).due_at is None


def test_a_parked_order_is_the_operators_until_the_deadline(house: UseSettings) -> None:
    """The sweeper leaves a parked order alone for ORDER_DEADLINE seconds from its placing."""
    house(order_deadline=500)
    order = place()
    operations.record([event(order.id, EventType.STEP_PARKED, {"step": TaskName.CHARGE})])
    stored = found(order.id)
    assert stored.status == Status.AWAITING_PAYMENT
    assert stored.due_at == stored.created_at + timedelta(seconds=500)


def test_only_due_orders_are_taken_and_their_next_look_doubles(house: UseSettings) -> None:
    """Each sweep of a silent order waits twice as long as the one before, up to 64 times SWEEP_AFTER."""
    house(sweep_after=10)
    order, _not_due = place(), place()
    waits = []
    for _ in range(9):
        change(order.id, due_at=NOW)
        before = datetime.now(UTC)
        (due,) = operations.take_due(10)
        assert (due.waybill.order_id, due.back) == (order.id, False)
        next_look = found(order.id).due_at
        assert next_look is not None
        waits.append(round((next_look - before).total_seconds() / 10))
        assert operations.take_due(10) == []
    assert waits == [2, 4, 8, 16, 32, 64, 64, 64, 64]


def test_a_sweep_publishes_the_first_event_again_under_its_old_id(house: UseSettings) -> None:
    """An ``order.placed`` that never reached the broker is stated again, as of when it happened."""
    order, way = operations.place(dict(BODY), "corr-1")
    (placed,) = way.events
    change(order.id, due_at=NOW)
    (due,) = operations.take_due(10)
    assert due.events == (replace(placed, time=order.created_at),)


def test_no_more_than_the_limit_is_taken_the_longest_due_first(house: UseSettings) -> None:
    """A batch is bounded; who waits longest comes first."""
    orders = [place() for _ in range(3)]
    for age, order in enumerate(orders):
        change(order.id, due_at=NOW - timedelta(hours=age))
    taken = [due.waybill.order_id for due in operations.take_due(2)]
    assert taken == [orders[2].id, orders[1].id]


def test_an_order_that_turned_round_is_driven_back(house: UseSettings) -> None:
    """The sweeper publishes the compensations of an order on its way back."""
    order = place()
    operations.record([event(order.id, *CAPTURED), event(order.id, EventType.DELIVERY_UNASSIGNABLE)])
    change(order.id, due_at=NOW)
    (due,) = operations.take_due(10)
    assert due.back


@pytest.mark.parametrize("parked", [True, False])
def test_after_the_deadline_an_order_expires(house: UseSettings, parked: bool) -> None:
    """Past ORDER_DEADLINE an unfinished order, parked or silent, is cancelled with ``order.expired``."""
    house(order_deadline=60)
    order = place()
    if parked:
        operations.record([event(order.id, EventType.STEP_PARKED, {"step": TaskName.CHARGE})])
    change(order.id, due_at=NOW, created_at=datetime.now(UTC) - timedelta(seconds=61))
    (due,) = operations.take_due(10)
    stored = found(order.id)
    assert due.back
    assert [each.type for each in due.events] == [EventType.ORDER_PLACED, EventType.ORDER_EXPIRED]
    assert (stored.status, stored.failure) == (Status.CANCELLING, "EXPIRED")
    assert operations.record(list(due.events)) == ([], [])
    timeline = operations.timeline(order.id)
    assert timeline
    assert [each.type for each in timeline].count(EventType.ORDER_EXPIRED) == 1


def test_before_the_deadline_an_order_does_not_expire(house: UseSettings) -> None:
    """A silent order is driven on, not cancelled, as long as there is time."""
    house(order_deadline=3600)
    order = place()
    change(order.id, due_at=NOW)
    (due,) = operations.take_due(10)
    assert not due.back
    assert found(order.id).status == Status.PENDING


@pytest.mark.parametrize(
    ("events", "status"),
    [([CAPTURED, ASSIGNED], Status.COMPLETED), ([(EventType.PAYMENT_DECLINED, {})], Status.CANCELLING)],
)
def test_what_is_complete_or_going_back_never_expires(
    house: UseSettings, events: list[tuple[str, dict[str, Any]]], status: Status
) -> None:
    """The deadline ends what is undecided; a fulfilled order stays fulfilled however late the notification is."""
    house(order_deadline=60)
    order = place()
    operations.record([event(order.id, kind, data) for kind, data in events])
    change(order.id, due_at=NOW, created_at=datetime.now(UTC) - timedelta(days=1))
    (due,) = operations.take_due(10)
    assert [each.type for each in due.events] == [EventType.ORDER_PLACED]
    assert found(order.id).status == status


def test_waking_makes_every_unsettled_order_due(house: UseSettings) -> None:
    """After a start with a broker that forgot its messages everything unfinished is swept at once."""
    order, settled = place(), place()
    change(settled.id, due_at=None)
    operations.wake_all()
    assert [due.waybill.order_id for due in operations.take_due(10)] == [order.id]


def test_an_unknown_order_is_not_found(house: UseSettings) -> None:
    """Neither an order nor a timeline for an id that nobody placed."""
    assert operations.find("nobody") is None
    assert operations.timeline("nobody") is None


@pytest.mark.parametrize(
    "data",
    [
        {"kind": []},
        {"kind": {}},
        {},
    ],
)
def test_an_odd_notification_event_does_not_settle_a_pending_order(house: UseSettings, data: dict[str, Any]) -> None:
    """An event whose data this version does not understand neither stops the recorder nor ends the saga."""
    order = place()
    odd: Event = event(order.id, EventType.CUSTOMER_NOTIFIED, data)
    assert operations.record([odd]) == ([], [])
    assert found(order.id).due_at is not None


def test_an_odd_parked_event_is_recorded(house: UseSettings) -> None:
    """A ``step.parked`` whose step is no name is put on the timeline and decides nothing."""
    order = place()
    assert operations.record([event(order.id, EventType.STEP_PARKED, {"step": ["payments.charge"]})]) == ([], [])
    assert found(order.id).status == Status.PENDING
