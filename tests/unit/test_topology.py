"""What is declared at the broker, and the memory broker's dead letters."""

from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue

from shared.contracts import queues
from shared.messaging import memory, topology
from tests.conftest import UseSettings


@pytest.fixture
def connection(house: UseSettings) -> Iterator[Connection]:
    """A connection to the memory broker, everything declared."""
    memory.register()
    topology.declare(Connection("memory://localhost/"), task_queues())
    with Connection("memory://localhost/") as connection:
        yield connection


def task_queues() -> list[Queue]:
    """Return the services' queues as the workers declare them."""
    exchange = Exchange(queues.TASKS_EXCHANGE, type="topic")
    return [
        Queue(name, exchange, routing_key=name, queue_arguments=topology.quorum_arguments(name))
        for name in queues.Queue
    ]


def size(connection: Connection, queue: str) -> int:
    """Return how many messages wait in a queue."""
    return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


def get(connection: Connection, queue: str) -> Any:
    """Take one message, None when there is none."""
    return Queue(queue, channel=connection.default_channel).get()


def publish(connection: Connection, body: Any, queue: str) -> None:
    """Publish as a task is."""
    connection.Producer().publish(body, exchange=queues.TASKS_EXCHANGE, routing_key=queue, headers={"id": "1"})


def test_a_queue_loses_nothing(house: UseSettings) -> None:
    """Quorum, a delivery limit, at-least-once dead letters, and a full queue refuses instead of dropping."""
    house(delivery_limit=7)
    assert topology.quorum_arguments("payments") == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 7,
        "x-dead-letter-exchange": "waybill.dlx",
        "x-dead-letter-routing-key": "payments.dlq",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def test_the_events_queue_takes_every_event(house: UseSettings) -> None:
    """It is bound to the events exchange by ``#`` and loses nothing either."""
    queue = topology.events_queue()
    assert (queue.name, queue.exchange.name, queue.exchange.type) == ("orders.events", "waybill.events", "topic")
    assert queue.routing_key == "#"
    assert queue.queue_arguments == topology.quorum_arguments("orders.events")


@pytest.mark.parametrize(("limited", "expected"), [(True, -1), (False, None)])
def test_dead_letters_may_be_looked_at_any_number_of_times(house: UseSettings, limited: bool, expected: Any) -> None:
    """RabbitMQ 4 limits deliveries unless told not to; 3 does not know how to be told."""
    queue = topology._dead_letter_queue("payments", limited_by_default=limited)
    assert (queue.name, queue.exchange.name, queue.routing_key) == ("payments.dlq", "waybill.dlx", "payments.dlq")
    assert queue.queue_arguments.get("x-delivery-limit") == expected
    assert "x-dead-letter-exchange" not in queue.queue_arguments


def test_the_audit_stream_is_bounded() -> None:
    """By age and by size, over every event."""
    stream = topology._audit_stream()
    assert (stream.name, stream.routing_key, stream.queue_arguments["x-queue-type"]) == ("waybill.audit", "#", "stream")
    assert {"x-max-age", "x-max-length-bytes"} <= stream.queue_arguments.keys()


def test_real_brokers_confirm_and_never_hang() -> None:
    """Publishes are confirmed, reads and writes end; the memory broker is polled every 10 ms."""
    assert topology.TRANSPORT_OPTIONS[False] == {"confirm_publish": True, "read_timeout": 5, "write_timeout": 5}
    assert topology.TRANSPORT_OPTIONS[True] == {"polling_interval": 0.01}


def test_everything_is_declared_with_its_dead_letters(connection: Connection) -> None:
    """Each queue and its ``.dlq`` exists after ``declare``, which may be repeated."""
    topology.declare(Connection("memory://localhost/"), task_queues())
    for queue in (*queues.Queue, queues.EVENTS_QUEUE):
        assert size(connection, queue) == size(connection, f"{queue}.dlq") == 0


def test_a_rejected_message_goes_to_its_dead_letters_unchanged(connection: Connection) -> None:
    """Body and headers stay as they are, with the reason and the queue noted."""
    publish(connection, {"a": 1}, "payments")
    get(connection, "payments").reject()
    dead = get(connection, "payments.dlq")
    assert (dead.payload, dead.headers["id"], dead.content_type) == ({"a": 1}, "1", "application/json")
    (death,) = dead.headers["x-death"]
    assert (death["queue"], death["reason"], death["count"]) == ("payments", "rejected", 1)
    assert size(connection, "payments") == 0


def test_a_message_handed_back_is_in_its_queue_again(connection: Connection) -> None:
    """Requeueing is not dead-lettering."""
    publish(connection, {"a": 1}, "payments")
    get(connection, "payments").requeue()
    assert (size(connection, "payments"), size(connection, "payments.dlq")) == (1, 0)


def test_an_acknowledged_message_is_gone(connection: Connection) -> None:
    """Neither in the queue nor in its dead letters."""
    publish(connection, {"a": 1}, "payments")
    get(connection, "payments").ack()
    assert (size(connection, "payments"), size(connection, "payments.dlq")) == (0, 0)


def test_a_message_in_several_queues_dies_in_each_on_its_own(connection: Connection) -> None:
    """Rejected in one queue it goes to that queue's dead letters, and stays where else it is."""
    Queue("copy", topology.EVENTS, routing_key="#", channel=connection.default_channel).declare()
    connection.Producer().publish({"a": 1}, exchange=topology.EVENTS, routing_key="order.placed")
    get(connection, "orders.events").reject()
    assert (size(connection, "orders.events.dlq"), size(connection, "copy")) == (1, 1)


def test_a_dead_letter_that_is_rejected_again_is_dropped(connection: Connection) -> None:
    """Dead letters have no dead letters; whoever handles them acknowledges or puts back."""
    publish(connection, {"a": 1}, "payments")
    get(connection, "payments").reject()
    get(connection, "payments.dlq").reject()
    assert size(connection, "payments.dlq") == 0


def test_a_reset_is_a_restart(connection: Connection) -> None:
    """The memory broker forgets its queues and messages."""
    publish(connection, {"a": 1}, "payments")
    memory.reset()
    topology.declare(Connection("memory://localhost/"), task_queues())
    assert size(connection, "payments") == 0
