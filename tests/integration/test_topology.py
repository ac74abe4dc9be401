"""The exchanges and queues: what they are, and that they come back by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import kombu
import pytest
import urllib3
from amqp import PreconditionFailed
from kombu.transport.native_delayed_delivery import MAX_LEVEL, level_name
from structlog.testing import capture_logs

from shared.contracts.events import EventType, new_event
from shared.contracts.queues import (
    AUDIT_STREAM,
    DEAD_LETTER_EXCHANGE,
    EVENTS_EXCHANGE,
    EVENTS_QUEUE,
    TASKS_EXCHANGE,
    Queue,
    TaskName,
    dead_letter_queue,
)
from shared.contracts.waybill import Waybill
from shared.messaging.beat import PatientScheduler
from shared.messaging.events import publish_events
from shared.messaging.topology import TRANSPORT_OPTIONS
from tests.integration.nodes import TIMEOUT, Fleet, eventually
from tests.support import new_body, wait_until

CONSUMED = [*Queue, EVENTS_QUEUE]
LOOKS = 30
ALL = [*CONSUMED, *map(dead_letter_queue, CONSUMED), AUDIT_STREAM, *map(level_name, range(MAX_LEVEL + 1))]
NewWaybill = Callable[..., Waybill]


def test_every_queue_that_is_consumed_loses_nothing(fleet: Fleet) -> None:
    """Quorum, a delivery limit, refusing rather than dropping, and at-least-once to dead letters of its own."""
    fleet.declare()
    found = _queues(fleet)
    for queue in CONSUMED:
        arguments = found[queue]
        assert arguments.pop("x-delivery-limit") > 0
        assert arguments == {
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": DEAD_LETTER_EXCHANGE,
            "x-dead-letter-routing-key": f"{queue}.dlq",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }


def test_dead_letters_have_no_delivery_limit(fleet: Fleet) -> None:
    """Looking at a dead letter counts as a delivery; it must not be the end of it."""
    fleet.declare()
    for queue in CONSUMED:
        arguments = _queues(fleet)[dead_letter_queue(queue)]
        assert arguments["x-queue-type"] == "quorum"
        assert arguments.get("x-delivery-limit", -1) == -1


def test_a_dead_letter_may_be_looked_at_any_number_of_times(fleet: Fleet) -> None:
    """RabbitMQ 4 would drop it after 20 deliveries if it were not told otherwise."""
    fleet.declare()
    queue = dead_letter_queue(Queue.PAYMENTS)
    with fleet.app.connection_for_write() as connection:
        channel = connection.default_channel
        connection.Producer(channel).publish({}, routing_key=queue, mandatory=True)
        for _ in range(LOOKS):
            looked = wait_until(lambda: channel.basic_get(queue))
            channel.basic_reject(looked.delivery_tag, requeue=True)
    assert len(fleet.take(queue)) == 1


def test_the_audit_log_is_a_bounded_stream(fleet: Fleet) -> None:
    """Bounded by age and by size."""
    fleet.declare()
    arguments = _queues(fleet)[AUDIT_STREAM]
    assert arguments["x-queue-type"] == "stream"
    assert {"x-max-age", "x-max-length-bytes"} <= arguments.keys()


@pytest.mark.parametrize(("name", "kind"), [(TASKS_EXCHANGE, "topic"), (EVENTS_EXCHANGE, "topic")])
def test_an_exchange_is_of_its_kind(fleet: Fleet, name: str, kind: str) -> None:
    """Declaring it again as the same kind is accepted, as another is not."""
    fleet.declare()
    with fleet.app.connection_for_write() as connection:
        kombu.Exchange(name, type=kind)(connection.default_channel).declare()
        with pytest.raises(PreconditionFailed):
            kombu.Exchange(name, type="direct")(connection.default_channel).declare()


def test_the_audit_log_has_every_event_twice_over(fleet: Fleet) -> None:
    """Events of every type reach the stream, and are still there for a second reader."""
    fleet.declare()
    order = "6f7c1f86-6a43-4c0a-9b5e-0f6c3f2f6a10"
    events = [new_event(kind, order, source="tests", correlation_id="cor", discriminator="audit") for kind in EventType]
    publish_events(fleet.app, *events)
    ids = {event.id for event in events}
    for _ in range(2):
        assert fleet.replay(AUDIT_STREAM, lambda found: ids <= {each["id"] for each in found})


@pytest.mark.parametrize("name", ["payments", "notifications", "recorder"])
def test_a_process_declares_everything_when_it_starts(fleet: Fleet, name: str) -> None:
    """On an empty virtual host one process of any kind brings back every queue, dead letters and delays included."""
    fleet.empty_virtual_host()
    with fleet.running(name):
        eventually(lambda: set(ALL) <= _queues(fleet).keys(), "every queue is back")


def test_a_process_brings_back_a_queue_when_it_starts_again(fleet: Fleet) -> None:
    """Queues that somebody deleted are back after a restart, and work."""
    with fleet.running("payments") as (node,):
        for queue in ("delivery", "payments.dlq", level_name(0)):
            fleet.delete_queue(queue)
        node.restart()
        eventually(lambda: set(ALL) <= _queues(fleet).keys(), "every queue is back")


def test_a_process_that_starts_first_says_nothing_bad(fleet: Fleet) -> None:
    """On an empty virtual host a worker has no error to report."""
    fleet.empty_virtual_host()
    with fleet.running("delivery") as (node,):
        lines = [line for line in node.logs().splitlines() if '"level": "error"' in line]
    assert lines == []


def test_the_api_publishes_into_an_empty_virtual_host(fleet: Fleet) -> None:
    """The first order may come before the first worker: its event and its chain wait in their queues."""
    fleet.empty_virtual_host()
    with fleet.running("api"):
        answer = urllib3.request("POST", f"{fleet.api_url}/v1/orders", json=new_body(), retries=False)
        assert answer.status == 202
        eventually(lambda: fleet.count("payments") == 1, "the chain waits")
        eventually(lambda: fleet.count(EVENTS_QUEUE) == 1, "the event waits")


def test_beat_publishes_into_an_empty_virtual_host(fleet: Fleet) -> None:
    """The periodic tasks wait for their workers."""
    fleet.empty_virtual_host()
    beat = fleet.node("beat", SWEEP_EVERY="0.2")
    beat.container.start()
    try:
        eventually(lambda: fleet.count("orders") > 0, "a sweep waits")
    finally:
        beat.kill()
    assert fleet.take("orders")[0].headers["task"] == TaskName.SWEEP


def test_beat_waits_for_a_virtual_host_that_went_after_its_start(fleet: Fleet) -> None:
    """It does not end: as soon as the virtual host is there, everything is declared and it can send."""
    with fleet.client(**TRANSPORT_OPTIONS[False]) as client, ThreadPoolExecutor() as pool, capture_logs() as logs:
        scheduler = PatientScheduler(client)
        fleet.rabbitmq.delete_vhost()
        try:
            sending = pool.submit(lambda: scheduler.producer)
            eventually(lambda: [line["event"] for line in logs].count("broker_refused") > 1, "it was refused twice")
            assert not sending.done()
        finally:
            fleet.rabbitmq.add_vhost()
        assert sending.result(TIMEOUT)
        scheduler.connection.close()
    assert set(ALL) <= _queues(fleet).keys()


def _queues(fleet: Fleet) -> dict[str, dict[str, object]]:
    """The virtual host's queues with their arguments."""
    rows = json.loads(
        fleet.rabbitmq.ctl("list_queues", "-p", fleet.rabbitmq.vhost, "name", "arguments", "--formatter=json")
    )
    return {row["name"]: _plain(row["arguments"]) for row in rows}


def _plain(arguments: object) -> dict[str, object]:
    """rabbitmqctl prints arguments as a mapping, or as [name, type, value] in some versions."""
    if isinstance(arguments, dict):
        return arguments
    assert isinstance(arguments, list)
    return {name: value for name, _, value in arguments}
