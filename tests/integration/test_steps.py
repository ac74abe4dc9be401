"""What a step does with its message on a real broker: nothing that arrives vanishes, whatever goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from amqp import ChannelError
from celery import Celery
from kombu.exceptions import OperationalError

from shared.contracts.queues import Queue, TaskName
from shared.contracts.waybill import Waybill
from stacks.processes import poll
from tests.integration.nodes import Fleet, events_of, eventually
from workers.payments.operations import operation_key

OBSTACLE = 4  # seconds that a queue takes nothing
REST = (TaskName.ASSIGN, TaskName.NOTIFY)
NewWaybill = Callable[..., Waybill]


@pytest.fixture(scope="module")
def payments(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet with a payments worker and nothing else: what it publishes stays in the queues."""
    with fleet.running("payments"):
        yield fleet


@pytest.fixture(autouse=True)
def _empty_queues(fleet: Fleet) -> None:
    """Take what an earlier test of this file left."""
    fleet.declare()
    for queue in ("payments.dlq", "delivery", "orders.events"):
        fleet.take(queue)


def test_a_step_that_fails_is_dead_lettered_with_body_and_chain(payments: Fleet, new_waybill: NewWaybill) -> None:
    """An error that no retry can heal parks the message unchanged, the rest of the chain inside it."""
    waybill = new_waybill()
    key = operation_key("charge", waybill.order_id)
    other = {"amount_cents": 1, "currency": "EUR", "payment_method": "tok_ok"}
    payments.ledger.charge(key, other, decline=None)  # so the provider answers with a conflict
    task_id = payments.publish(TaskName.CHARGE, waybill, *REST)
    eventually(lambda: payments.count("payments.dlq") == 1, "the message is dead-lettered")
    (dead,) = payments.take("payments.dlq")
    args, _, embed = json.loads(dead.body)
    assert args == [waybill.to_dict()]
    assert [each["task"] for each in embed["chain"]] == [TaskName.NOTIFY, TaskName.ASSIGN]
    assert (dead.headers["id"], dead.headers["x-death"][0]["reason"]) == (task_id, "rejected")
    (parked,) = events_of(payments)
    assert (parked["type"], parked["data"]["step"]) == ("step.parked", TaskName.CHARGE)
    assert payments.count("delivery") == 0


def test_a_body_that_is_no_waybill_is_dead_lettered(payments: Fleet, new_waybill: NewWaybill) -> None:
    """A message whose body breaks the schema goes to the dead letters as it came."""
    body = new_waybill().to_dict() | {"amount_cents": "a lot"}
    payments.app.send_task(str(TaskName.CHARGE), args=(body,))
    eventually(lambda: payments.count("payments.dlq") == 1, "the message is dead-lettered")
    assert json.loads(payments.take("payments.dlq")[0].body)[0] == [body]


def test_a_task_that_nobody_knows_is_dead_lettered(payments: Fleet, new_waybill: NewWaybill) -> None:
    """A name that the worker does not serve is no reason to lose the message."""
    payments.publish("payments.gamble", new_waybill())
    eventually(lambda: payments.count("payments.dlq") == 1, "the message is dead-lettered")
    assert payments.take("payments.dlq")[0].headers["task"] == "payments.gamble"


def test_a_declined_step_stops_the_chain_and_turns_round(payments: Fleet, new_waybill: NewWaybill) -> None:
    """A declined charge publishes the decline, and of the chain nothing but the way back."""
    waybill = new_waybill(payment_method="tok_declined")
    payments.publish(TaskName.CHARGE, waybill, *REST)
    eventually(lambda: payments.count("delivery") == 1, "the way back has begun")
    (message,) = payments.take("delivery")
    assert message.headers["task"] == TaskName.RELEASE
    assert [event["type"] for event in events_of(payments)] == ["payment.declined"]
    assert payments.count("notifications") == payments.count("payments.dlq") == 0


def test_a_message_twice_charges_once_and_says_so_twice(payments: Fleet, new_waybill: NewWaybill) -> None:
    """A chain published again goes through again, with one charge and one event id."""
    waybill = new_waybill()
    for _ in range(2):
        payments.publish(TaskName.CHARGE, waybill, *REST)
    eventually(lambda: payments.count("delivery") == 2, "both chains went on", timeout=40)
    assert len({event["id"] for event in events_of(payments)}) == 1
    assert len(payments.charges(operation_key("charge", waybill.order_id))) == 1


def test_a_lost_redis_changes_nothing_but_speed(payments: Fleet, new_waybill: NewWaybill) -> None:
    """With every key gone, the table row still answers a repeated step; the customer is charged once."""
    waybill = new_waybill()
    payments.publish(TaskName.CHARGE, waybill, *REST)
    eventually(lambda: payments.count("delivery") == 1, "the chain went on")
    payments.forget_keys()
    payments.publish(TaskName.CHARGE, waybill, *REST)
    eventually(lambda: payments.count("delivery") == 2, "the chain went on again")
    assert len(payments.charges(operation_key("charge", waybill.order_id))) == 1


def test_publishing_to_a_missing_queue_is_an_error(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """`mandatory` tells us that nobody took the message; without it the broker says OK and drops it."""
    options = {"exchange": "waybill.tasks", "routing_key": "nowhere", "retry": False}
    with pytest.raises((OperationalError, ChannelError), match="NO_ROUTE"):
        fleet.publish(TaskName.CHARGE, new_waybill(), **options, mandatory=True)
    fleet.publish(TaskName.CHARGE, new_waybill(), **options, mandatory=False)


def test_every_task_of_the_saga_is_published_as_mandatory(fleet: Fleet) -> None:
    """The routes carry the option, so that no caller can forget it."""
    for name in TaskName:
        assert fleet.app.amqp.router.route({}, name)["mandatory"] is True


def test_publishing_to_a_full_queue_is_an_error(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """A queue at its limit refuses, and the confirm says so; without confirms the message is gone."""
    unconfirmed = fleet.client()
    with fleet.policy("notifications", max_length=1):
        with pytest.raises(OperationalError):
            _fill(fleet.app, new_waybill)
        held = fleet.count("notifications")
        _fill(unconfirmed, new_waybill)
        unconfirmed.close()
    assert len(fleet.take("notifications")) == held


def _fill(app: Celery, new_waybill: NewWaybill, task: str = TaskName.NOTIFY) -> None:
    for _ in range(10):
        app.send_task(str(task), args=(new_waybill().to_dict(),), retry=False)


@pytest.mark.parametrize(("acknowledge", "kept"), [("false", 1), ("true", 0)], ids=["remedy", "stock"])
def test_a_task_that_raises_is_dead_lettered(fleet: Fleet, acknowledge: str, kept: int) -> None:
    """What no code of ours catches is rejected to the dead letters; Celery's default acknowledges it: lost."""
    fleet.take("orders.dlq")
    node = fleet.node("orders", "--", f"task.acks_on_failure={acknowledge}")
    fleet.rows("orders", "ALTER TABLE orders RENAME TO mislaid")
    try:
        node.container.start()
        assert node.ready()
        said = node.logs().count("ProgrammingError")
        fleet.app.send_task(str(TaskName.SWEEP))
        eventually(lambda: node.logs().count("ProgrammingError") > said, "the task has failed")
        eventually(lambda: fleet.unacknowledged("orders") == 0, "the message is dealt with")
    finally:
        node.kill()
        fleet.rows("orders", "ALTER TABLE mislaid RENAME TO orders")
    assert (fleet.count("orders"), fleet.count("orders.dlq")) == (0, kept)


@pytest.mark.parametrize("obstacle", ["full", "missing"])
def test_a_step_whose_successor_cannot_be_published_is_handed_back(
    payments: Fleet, new_waybill: NewWaybill, obstacle: str
) -> None:
    """The charge happened, the delivery queue takes nothing: the message waits and the chain goes on later."""
    payments.publish(TaskName.CHARGE, new_waybill(), *REST)
    eventually(lambda: payments.take("delivery"), "the worker has declared the queue, and will not again")
    waybill = new_waybill()
    key = operation_key("charge", waybill.order_id)
    with _blocked(payments, new_waybill) if obstacle == "full" else _missing(payments):
        payments.publish(TaskName.CHARGE, waybill, *REST)
        eventually(lambda: payments.charges(key), "the charge happened")
        assert not poll(lambda: payments.count("payments.dlq") > 0, OBSTACLE), "a passing obstacle is no dead letter"
    eventually(lambda: waybill.order_id in _orders(payments, "delivery"), "the chain went on", timeout=60)
    assert len(payments.charges(key)) == 1


@contextmanager
def _blocked(fleet: Fleet, new_waybill: NewWaybill) -> Iterator[None]:
    """The delivery queue is at its limit."""
    with fleet.policy(Queue.DELIVERY, max_length=1):
        with pytest.raises(OperationalError):
            _fill(fleet.app, new_waybill, TaskName.ASSIGN)
        yield


@contextmanager
def _missing(fleet: Fleet) -> Iterator[None]:
    """The delivery queue is gone."""
    fleet.delete_queue(Queue.DELIVERY)
    try:
        yield
    finally:
        fleet.declare()


def _orders(fleet: Fleet, queue: str) -> set[str]:
    return {json.loads(message.body)[0][0]["order_id"] for message in fleet.take(queue)}
