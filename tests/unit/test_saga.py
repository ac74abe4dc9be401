"""The saga's table and the chains built from it."""

from typing import Any

import pytest
from celery import Signature

from shared.contracts import saga
from shared.contracts.events import EventType
from shared.contracts.queues import Queue, TaskName, dead_letter_queue, queue_of
from shared.contracts.saga import SagaStep, Status
from tests.support import new_waybill
from workers.orders import status


def names(chain: Signature) -> list[str]:
    """Return the tasks of a chain in the order in which they run."""
    return [chain["task"], *(rest["task"] for rest in reversed(chain["options"]["chain"]))]


def test_the_forward_chain_is_the_table() -> None:
    """Every step, in the table's order."""
    assert names(saga.forward(new_waybill())) == [step.task for step in saga.SAGA]
    assert names(saga.forward(new_waybill())) == ["payments.charge", "delivery.assign", "notifications.send"]


def test_the_backward_chain_undoes_in_reverse() -> None:
    """Each compensation from the last step to the first, then the cancellation, then the customer."""
    undo = [step.compensation for step in reversed(saga.SAGA) if step.compensation]
    assert names(saga.backward(new_waybill())) == [*undo, TaskName.CANCEL, TaskName.NOTIFY]
    assert undo == ["delivery.release", "payments.refund"]


@pytest.mark.parametrize("build", [saga.forward, saga.backward])
def test_the_waybill_is_the_only_argument_of_the_first_task(build: Any) -> None:
    """The rest of the chain gets its argument from the step before."""
    waybill = new_waybill()
    chain = build(waybill)
    assert chain["args"] == (waybill.to_dict(),)
    assert not any(rest["args"] or rest["kwargs"] for rest in chain["options"]["chain"])


@pytest.mark.parametrize("build", [saga.forward, saga.backward])
def test_a_chain_holds_plain_text_for_names(build: Any) -> None:
    """Celery would take an enum member for a task object."""
    chain = build(new_waybill())
    assert {type(each["task"]) for each in (chain, *chain["options"]["chain"])} == {str}


def test_a_new_line_is_a_new_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is added by its line alone, first or last."""
    monkeypatch.setattr(saga, "SAGA", (SagaStep("inventory.reserve", "stock.reserved"), *saga.SAGA))
    assert names(saga.forward(new_waybill()))[:2] == ["inventory.reserve", "payments.charge"]


def test_every_task_of_the_table_has_a_queue_and_every_event_a_name() -> None:
    """What the table says exists: queues by the name before the dot, events in the catalogue."""
    for step in saga.SAGA:
        assert queue_of(step.task) in set(Queue)
        assert step.done in set(EventType)
        assert step.compensation is None or queue_of(step.compensation) == queue_of(step.task)


def test_every_essential_step_has_a_parked_status_the_fold_knows() -> None:
    """The statuses of parked steps are exactly those that the sweeper leaves to an operator."""
    assert {step.parked for step in saga.ESSENTIAL} == status.PARKED
    assert {each for each in Status if each.startswith("AWAITING")} == status.PARKED


@pytest.mark.parametrize(("task", "queue"), [(name, name.split(".")[0]) for name in TaskName])
def test_a_task_is_served_by_the_queue_before_its_dot(task: str, queue: str) -> None:
    """So a route never needs a table."""
    assert queue_of(task) == queue
    assert queue in set(Queue)
    assert dead_letter_queue(queue) == f"{queue}.dlq"
