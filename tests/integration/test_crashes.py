"""Whatever dies, worker or broker, the message is there again, and the customer is charged once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
from kombu.exceptions import OperationalError
from pytest_celery import CeleryTestNode

from shared.contracts.queues import Queue, TaskName
from shared.contracts.waybill import Waybill
from tests.integration.nodes import Fleet, events_of, eventually, start
from workers.payments.operations import operation_key

HANGS = 25  # seconds after which a publisher has given up; without the time-outs it is 30 to 45 and more
REST = (TaskName.ASSIGN, TaskName.NOTIFY)
NewWaybill = Callable[..., Waybill]


@pytest.fixture(autouse=True)
def _empty_queues(fleet: Fleet) -> None:
    """Take what an earlier test of this file left."""
    fleet.declare()
    for queue in (*Queue, "orders.events", "payments.dlq"):
        fleet.take(queue)


@pytest.mark.parametrize(("late", "kept"), [("true", 1), ("false", 0)], ids=["remedy", "stock"])
def test_a_step_of_a_killed_worker_is_delivered_again(
    fleet: Fleet, new_waybill: NewWaybill, late: str, kept: int
) -> None:
    """kill -9 while the provider is asked: the message is back in the queue; acknowledged early it would be lost."""
    waybill = new_waybill()
    with _slow_provider(fleet):
        node = fleet.node("payments", "--", f"task.acks_late={late}")
        start(node)
        fleet.publish(TaskName.CHARGE, waybill, *REST)
        _kill_within_step(fleet, node, waybill)
    assert fleet.count("payments") == kept


def test_a_step_of_a_killed_worker_is_completed_once(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """The redelivered step finds out that the charge happened, says so, and the chain goes on."""
    waybill = new_waybill()
    with _slow_provider(fleet), fleet.running("payments") as (node,):
        fleet.publish(TaskName.CHARGE, waybill, *REST)
        _kill_within_step(fleet, node, waybill)
        start(node)
        eventually(lambda: fleet.count("delivery") == 1, "the chain went on")
    assert [event["type"] for event in events_of(fleet)] == ["payment.captured"]
    assert len(fleet.charges(_key(waybill))) == 1
    assert fleet.count("payments") == 0


def test_a_message_that_kills_its_workers_is_dead_lettered(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """After the delivery limit (here 1) and one more run the killer is in the dead letters, with the reason."""
    waybill = new_waybill()
    with _slow_provider(fleet), fleet.policy("payments", delivery_limit=1), fleet.running("payments") as (node,):
        fleet.publish(TaskName.CHARGE, waybill, *REST)
        first = _kill_within_step(fleet, node, waybill)
        assert fleet.count("payments") == 1
        start(node)
        _kill_within_step(fleet, node, waybill, before=first)
        eventually(lambda: fleet.count("payments.dlq") == 1, "the killer is dead-lettered")
    (dead,) = fleet.take("payments.dlq")
    assert dead.headers["x-death"][0]["reason"] == "delivery_limit"
    assert fleet.count("payments") == 0


def test_a_worker_told_to_stop_finishes_its_steps(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """SIGTERM: the running step is completed and acknowledged, its successor published, the exit code 0."""
    waybill = new_waybill()
    with _slow_provider(fleet), fleet.running("payments") as (node,):
        fleet.publish(TaskName.CHARGE, waybill, *REST)
        eventually(lambda: _attempt(fleet, waybill), "the provider is asked")
        node.kill("SIGTERM")
        assert node.container.process.wait(30) == 0
    assert fleet.count("delivery") == 1
    assert fleet.count("payments") == 0
    assert len(fleet.charges(_key(waybill))) == 1


def test_a_crash_of_the_broker_loses_neither_finished_nor_waiting_steps(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """kill -9 of RabbitMQ while one step asks the provider and another waits in a delay queue: both go on."""
    charged, waiting = new_waybill(), new_waybill()
    busy = {**waiting.address, "area": "busy"}
    waiting = new_waybill(order_id=waiting.order_id, address=busy)
    courier = (
        "INSERT INTO couriers (id, name, area, capacity, active, open_bookings) VALUES ('b', 'B', 'busy', 1, true, 1)"
    )
    fleet.rows("delivery", courier)
    with fleet.running("payments", "delivery"), _slow_provider(fleet, seconds=3):
        eventually(lambda: all(fleet.rabbitmq.on_disk(name) for name in Queue), "the queues are on disk")
        fleet.publish(TaskName.ASSIGN, waiting, TaskName.NOTIFY)
        eventually(lambda: fleet.delayed() == 1, "the step waits in the broker")
        fleet.publish(TaskName.CHARGE, charged, TaskName.NOTIFY)
        eventually(lambda: _attempt(fleet, charged), "the provider is asked")
        (broker,) = fleet.broker_cluster
        broker.kill()
        eventually(lambda: fleet.charges(_key(charged)), "the provider has charged")
        fleet.rows("delivery", "UPDATE couriers SET open_bookings = 0 WHERE id = 'b'")
        broker.container.start()
        assert broker.ready()
        eventually(lambda: fleet.count("notifications") == 2, "both chains went on", timeout=60)
    assert {event["subject"] for event in events_of(fleet)} == {charged.order_id, waiting.order_id}
    assert len(fleet.charges(_key(charged))) == 1


def test_publishing_to_a_broker_that_hangs_fails_within_seconds(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """A stopped broker keeps its connections open and answers nothing: the time-outs end the wait."""
    fleet.publish(TaskName.NOTIFY, new_waybill())
    (broker,) = fleet.broker_cluster
    broker.kill("SIGSTOP")
    try:
        began = time.monotonic()
        with pytest.raises(OperationalError):
            fleet.publish(TaskName.NOTIFY, new_waybill(), retry=False)
        assert time.monotonic() - began < HANGS
    finally:
        broker.kill("SIGCONT")
    eventually(lambda: fleet.count("notifications") > 0, "the broker is back")


@contextmanager
def _slow_provider(fleet: Fleet, seconds: float = 2) -> Iterator[None]:
    """The provider takes its time, so that a step can be caught in the act."""
    fleet.faults(latency_ms=int(seconds * 1000))
    try:
        yield
    finally:
        fleet.faults(latency_ms=0)


def _attempt(fleet: Fleet, waybill: Waybill) -> datetime | None:
    """When the order's step last committed that it is about to ask the provider."""
    query = "SELECT attempted_at FROM payments WHERE order_id = :id"
    found: list[Any] = fleet.rows("payments", query, id=waybill.order_id)
    return found[0][0] if found else None


def _kill_within_step(
    fleet: Fleet, node: CeleryTestNode, waybill: Waybill, before: datetime | None = None
) -> datetime | None:
    """kill -9 once an attempt other than ``before`` has begun; return it when the broker has noticed."""
    eventually(lambda: _attempt(fleet, waybill) not in (None, before), "the provider is asked")
    attempt = _attempt(fleet, waybill)
    node.kill()
    eventually(lambda: fleet.rabbitmq.consumers("payments") == 0, "the broker noticed")
    return attempt


def _key(waybill: Waybill) -> str:
    return operation_key("charge", waybill.order_id)
