"""A broker user for each process: what ``deploy/rabbitmq/definitions.json`` allows is enough, and no more than that."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

import amqp
import pytest
import urllib3

from shared.contracts.queues import EVENTS_EXCHANGE, EVENTS_QUEUE, TASKS_EXCHANGE, Queue, dead_letter_queue
from stacks.local import ROOT
from stacks.processes import free_port, port_taken
from tests.integration.nodes import Fleet, eventually, start
from tests.support import new_body

DEFINITIONS = json.loads((ROOT / "deploy/rabbitmq/definitions.json").read_text())
USERS = [user["name"] for user in DEFINITIONS["users"]]
PASSWORD = uuid.uuid4().hex
CONTROL = "celery.pidbox"
PROCESSES = ("payments", "delivery", "notifications", "orders", "recorder", "beat", "api")


@pytest.fixture(scope="module")
def users(fleet: Fleet) -> Iterator[dict[str, str]]:
    """Every user with the rights that the file gives; their URLs by name."""
    vhost, ctl = fleet.rabbitmq.vhost, fleet.rabbitmq.ctl
    for name in USERS:
        ctl("add_user", name, PASSWORD)
    for right in DEFINITIONS["permissions"]:
        ctl("set_permissions", "-p", vhost, right["user"], right["configure"], right["write"], right["read"])
    for right in DEFINITIONS["topic_permissions"]:
        patterns = (right["exchange"], right["write"], right["read"])
        ctl("set_topic_permissions", "-p", vhost, right["user"], *patterns)
    yield {name: f"amqp://{name}:{PASSWORD}@127.0.0.1:{fleet.rabbitmq.port}/{vhost}" for name in USERS}
    for name in USERS:
        fleet.rabbitmq.delete_user(name)


@pytest.fixture(scope="module")
def at_work(fleet: Fleet, users: dict[str, str]) -> Iterator[Fleet]:
    """The fleet, each process as its own user. It is started before anybody declared a queue, and waits."""
    nodes = [fleet.node(name, BROKER_URL=users[name], TOPOLOGY="expect", SWEEP_EVERY="1") for name in PROCESSES]
    for node in nodes:
        node.container.start()
    payments = nodes[0]
    eventually(lambda: "no queue 'payments'" in payments.logs(), "the worker says what it waits for")
    command = [sys.executable, "-m", "workers.setup", "deploy/couriers.json"]
    setup = fleet.process("setup", command, BROKER_URL=users["setup"])
    setup.start()
    assert setup.wait(60) == 0, setup.log.read_text()
    setup.kill()
    start(*nodes)
    yield fleet
    for node in nodes:
        node.kill()


def test_an_order_goes_all_the_way(at_work: Fleet) -> None:
    """Steps, events, retries over the delay queues, periodic tasks: each process may do its work."""
    orders = [_place(at_work, payment_method=token) for token in ("tok_ok", "tok_error_twice", "tok_declined")]
    for order_id, status in zip(orders, ("COMPLETED", "COMPLETED", "CANCELLED"), strict=True):
        eventually(lambda o=order_id, s=status: _order(at_work, o)["status"] == s, f"an order is {status}", 60)
    logs = {path.stem: path.read_text() for path in (at_work.stack.folder / "log").iterdir()}
    assert not [name for name, text in logs.items() if "ACCESS_REFUSED" in text]


def test_the_operator_reaches_every_worker(at_work: Fleet, users: dict[str, str]) -> None:
    """Remote control works for the one user who may send it."""
    command = [sys.executable, "-m", "celery", "-A", "workers", "inspect", "ping", "--timeout=10"]
    inspect = at_work.process("inspect", command, BROKER_URL=users["operator"])
    inspect.start()
    assert inspect.wait(60) == 0, inspect.log.read_text()
    inspect.kill()
    assert all(f"{name}@" in inspect.log.read_text() for name in Queue)


def test_flower_shows_the_workers_and_sends_nothing(at_work: Fleet, users: dict[str, str]) -> None:
    """It lives on the events that workers send by themselves."""
    port = free_port()
    command = [sys.executable, "-m", "celery", "-A", "workers.dashboard", "flower", "--address=127.0.0.1"]
    more = {"BROKER_URL": users["flower"], "FLOWER_UNAUTHENTICATED_API": "true"}
    flower = at_work.process("flower", [*command, f"--port={port}", "--enable_events=false"], **more)
    flower.start()
    try:
        eventually(lambda: port_taken(port), "Flower listens")
        eventually(partial(_shown, port), "Flower shows a worker")
        assert "ACCESS_REFUSED" not in flower.log.read_text()
    finally:
        flower.stop()


REFUSED: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("payments", "consume delivery", lambda channel: channel.basic_consume(Queue.DELIVERY)),
    ("payments", "take a delivery", lambda channel: channel.basic_get(Queue.DELIVERY)),
    ("payments", "read its dead letters", lambda channel: channel.basic_get(dead_letter_queue(Queue.PAYMENTS))),
    ("payments", "read events", lambda channel: channel.basic_get(EVENTS_QUEUE)),
    ("payments", "delete its queue", lambda channel: channel.queue_delete(Queue.PAYMENTS)),
    ("payments", "send remote control", lambda channel: _publish(channel, CONTROL)),
    ("payments", "state that a courier is assigned", lambda c: _publish(c, EVENTS_EXCHANGE, "delivery.assigned")),
    ("api", "take a payment", lambda channel: channel.basic_get(Queue.PAYMENTS)),
    ("api", "declare a queue", lambda channel: channel.queue_declare("mine")),
    ("api", "state that an order is paid", lambda channel: _publish(channel, EVENTS_EXCHANGE, "payment.captured")),
    ("recorder", "place a task", lambda channel: _publish(channel, TASKS_EXCHANGE, Queue.PAYMENTS)),
    ("beat", "take a task", lambda channel: channel.basic_get(Queue.ORDERS)),
    ("flower", "place a task", lambda channel: _publish(channel, TASKS_EXCHANGE, Queue.PAYMENTS)),
    ("flower", "send remote control", lambda channel: _publish(channel, CONTROL)),
    ("flower", "read a queue", lambda channel: channel.basic_get(Queue.PAYMENTS)),
]


@pytest.mark.parametrize(("user", "what", "attempt"), REFUSED, ids=[f"{user}: {what}" for user, what, _ in REFUSED])
def test_a_user_may_do_no_more_than_its_work(
    at_work: Fleet, users: dict[str, str], user: str, what: str, attempt: Callable[[Any], Any]
) -> None:
    """The broker refuses it."""
    where = f"127.0.0.1:{at_work.rabbitmq.port}"
    account = {"userid": user, "password": PASSWORD, "virtual_host": at_work.rabbitmq.vhost}
    with (
        amqp.Connection(where, **account, confirm_publish=True, connect_timeout=5, read_timeout=5) as connection,
        pytest.raises(amqp.AccessRefused),
    ):
        attempt(connection.channel())


def _publish(channel: Any, exchange: str, key: str = "") -> None:
    channel.basic_publish_confirm(amqp.Message("{}"), exchange=exchange, routing_key=key)


def _place(fleet: Fleet, **changes: Any) -> str:
    answer = urllib3.request("POST", f"{fleet.api_url}/v1/orders", json=new_body(**changes), retries=False, timeout=20)
    assert answer.status == HTTPStatus.ACCEPTED, answer.data
    return str(answer.json()["id"])


def _order(fleet: Fleet, order_id: str) -> dict[str, Any]:
    return dict(urllib3.request("GET", f"{fleet.api_url}/v1/orders/{order_id}", retries=False, timeout=20).json())


def _shown(port: int) -> bool:
    url = f"http://127.0.0.1:{port}/api/workers?status=1"
    return "payments@" in urllib3.request("GET", url, retries=False, timeout=5).data.decode()
