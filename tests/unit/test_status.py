"""The status fold: the same picture from the same set of events, and what each set means."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.events import EventType
from shared.contracts.queues import TaskName
from shared.contracts.saga import SAGA, Status
from workers.orders.status import BACKWARD, CAUSES, PARKED, fold


@dataclass(frozen=True)
class Fact:
    """An event, as far as the fold reads it."""

    type: str
    data: dict[str, Any] = field(default_factory=dict)


CAPTURED = Fact(EventType.PAYMENT_CAPTURED, {"transaction_id": "txn_1"})
ASSIGNED = Fact(EventType.DELIVERY_ASSIGNED, {"courier": "cou_1"})
CANCELLED = Fact(EventType.ORDER_CANCELLED)


def parked(step: str) -> Fact:
    """A step's message went to the dead letters."""
    return Fact(EventType.STEP_PARKED, {"step": step})


def notified(kind: str) -> Fact:
    """The customer was told."""
    return Fact(EventType.CUSTOMER_NOTIFIED, {"kind": kind})


facts = st.one_of(
    st.sampled_from([Fact(each) for each in EventType]),
    st.sampled_from(["txn_1", "txn_2"]).map(lambda id_: Fact(EventType.PAYMENT_CAPTURED, {"transaction_id": id_})),
    st.sampled_from(["cou_1", "cou_2"]).map(lambda id_: Fact(EventType.DELIVERY_ASSIGNED, {"courier": id_})),
    st.sampled_from(TaskName).map(parked),
    st.sampled_from(["completed", "cancelled", "other"]).map(notified),
    st.just(Fact("stock.reserved", {"unknown": "to this version"})),
)
fact_lists = st.lists(facts, max_size=12)


@given(fact_lists, st.data())
def test_order_and_repetition_make_no_difference(events: list[Fact], data: st.DataObject) -> None:
    """Any permutation with any repetition of a set of events gives the same picture."""
    again = data.draw(st.lists(st.sampled_from(events), max_size=6)) if events else []
    assert fold(data.draw(st.permutations(events + again))) == fold(events)


@given(fact_lists)
def test_completed_is_captured_and_assigned_without_a_cause(events: list[Fact]) -> None:
    """COMPLETED exactly when captured, assigned, and nothing turned the order round."""
    types = {each.type for each in events}
    done = {EventType.PAYMENT_CAPTURED, EventType.DELIVERY_ASSIGNED} <= types
    stopped = types & {*CAUSES, EventType.ORDER_CANCELLED}
    assert (fold(events).status is Status.COMPLETED) == (done and not stopped)


@given(fact_lists, st.sampled_from(list(CAUSES)))
def test_a_cause_dominates(events: list[Fact], cause: str) -> None:
    """With a cause among its events an order is on its way back, whatever else there is."""
    picture = fold([*events, Fact(cause)])
    assert picture.status in BACKWARD
    assert picture.failure is not None


@given(fact_lists)
def test_a_parked_notification_never_touches_the_status(events: list[Fact]) -> None:
    """The picture is the same with and without the notification's dead letter."""
    assert fold([*events, parked(TaskName.NOTIFY)]) == fold(events)


@given(fact_lists)
def test_retrying_never_touches_the_status(events: list[Fact]) -> None:
    """A step that is being retried changes nothing, nor does an event this version does not know."""
    assert fold([*events, Fact(EventType.STEP_RETRYING, {"step": TaskName.CHARGE}), Fact("new.kind")]) == fold(events)


@given(fact_lists)
def test_only_a_told_customer_settles_an_order(events: list[Fact]) -> None:
    """Settled means final, and the customer was told of this very end."""
    picture = fold(events)
    told = {each.data.get("kind") for each in events if each.type == EventType.CUSTOMER_NOTIFIED}
    expected = {Status.COMPLETED: "completed" in told, Status.CANCELLED: "cancelled" in told}
    assert picture.settled == expected.get(picture.status, False)


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], Status.PENDING),
        ([CAPTURED], Status.PAID),
        ([ASSIGNED], Status.PENDING),
        ([CAPTURED, ASSIGNED], Status.COMPLETED),
        ([parked(TaskName.CHARGE)], Status.AWAITING_PAYMENT),
        ([parked(TaskName.CHARGE), ASSIGNED], Status.AWAITING_PAYMENT),
        ([parked(TaskName.CHARGE), CAPTURED], Status.PAID),
        ([parked(TaskName.ASSIGN)], Status.PENDING),
        ([CAPTURED, parked(TaskName.ASSIGN)], Status.AWAITING_DISPATCH),
        ([CAPTURED, parked(TaskName.ASSIGN), ASSIGNED], Status.COMPLETED),
        ([parked(TaskName.REFUND)], Status.PENDING),
        ([CANCELLED], Status.CANCELLED),
        ([CANCELLED, CAPTURED, ASSIGNED, parked(TaskName.REFUND)], Status.CANCELLED),
    ],
)
def test_each_set_of_events_has_its_status(events: list[Fact], status: Status) -> None:
    """The table of statuses, by example."""
    assert fold(events).status is status


@pytest.mark.parametrize(("cause", "failure"), list(CAUSES.items()))
@pytest.mark.parametrize("done", [[], [CAPTURED], [CAPTURED, ASSIGNED], [CAPTURED, parked(TaskName.ASSIGN)]])
def test_a_cause_turns_the_order_round(cause: str, failure: str, done: list[Fact]) -> None:
    """CANCELLING until ``order.cancelled``; the failure names the cause and stays."""
    events = [*done, Fact(cause)]
    assert (fold(events).status, fold(events).failure) == (Status.CANCELLING, failure)
    ended = fold([*events, CANCELLED])
    assert (ended.status, ended.failure) == (Status.CANCELLED, failure)


@pytest.mark.parametrize("compensation", [step.compensation for step in SAGA if step.compensation])
@pytest.mark.parametrize("cause", list(CAUSES))
def test_a_parked_compensation_needs_attention(compensation: str, cause: str) -> None:
    """An order that cannot be undone is shown to an operator, until it is undone after all."""
    events = [CAPTURED, Fact(cause), parked(compensation)]
    assert fold(events).status is Status.NEEDS_ATTENTION
    assert fold([*events, CANCELLED]).status is Status.CANCELLED


@pytest.mark.parametrize("step", [step for step in SAGA if step.parked])
def test_a_parked_step_of_an_order_that_is_cancelled_is_no_longer_parked(step: Any) -> None:
    """A parked step shows its status, and a cause goes before it."""
    done = [Fact(each.done) for each in SAGA[: SAGA.index(step)]]
    assert step.parked in PARKED
    assert fold([*done, parked(step.task)]).status is step.parked
    assert fold([*done, parked(step.task), Fact(EventType.ORDER_EXPIRED)]).status is Status.CANCELLING


def test_the_first_cause_in_the_table_is_the_failure_shown() -> None:
    """A decline is what the client reads, also when the order then expired or was cancelled."""
    assert fold([Fact(cause) for cause in reversed(CAUSES)]).failure == "PAYMENT_FAILED"


def test_the_picture_carries_what_the_events_say() -> None:
    """Transaction and courier come from the events that state them; without them there are none."""
    picture = fold([CAPTURED, ASSIGNED])
    assert (picture.transaction_id, picture.courier, picture.failure) == ("txn_1", "cou_1", None)
    bare = fold([Fact(EventType.PAYMENT_CAPTURED)])
    assert (bare.transaction_id, bare.courier) == (None, None)
