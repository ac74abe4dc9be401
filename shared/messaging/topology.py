"""The exchanges and queues. Every process declares all of them at start, so that nobody publishes into a void; where it
has no right to (``TOPOLOGY=expect``), it waits until they are there.

Task queues and ``orders.events`` are quorum queues that dead-letter, at least once, to ``<queue>.dlq``. Dead-letter
queues have no delivery limit: looking at a dead letter counts as a delivery.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from kombu import Connection, Exchange, Queue
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)

from shared.contracts.queues import (
    AUDIT_STREAM,
    DEAD_LETTER_EXCHANGE,
    EVENTS_EXCHANGE,
    EVENTS_QUEUE,
    dead_letter_queue,
)
from shared.settings import EXPECT, get_settings

#: By "is it embedded": what the connection is told. Time-outs are seconds.
TRANSPORT_OPTIONS: dict[bool, dict[str, Any]] = {
    True: {"polling_interval": 0.01},
    False: {"confirm_publish": True, "read_timeout": 5, "write_timeout": 5},
}
_AUDIT_MAX_AGE = "30D"
_AUDIT_MAX_BYTES = 2_000_000_000
_NO_LIMIT = -1
_FIRST_WITH_DEFAULT_LIMIT = 4  # RabbitMQ's major version

EVENTS = Exchange(EVENTS_EXCHANGE, type="topic")
DEAD_LETTERS = Exchange(DEAD_LETTER_EXCHANGE, type="direct")


def ours() -> dict[str, bool]:
    """Return the option of an exchange or queue of ours: whether kombu declares it wherever it is used."""
    return {"no_declare": get_settings().topology == EXPECT}


def quorum_arguments(queue: str) -> dict[str, Any]:
    """Return the arguments of a queue that loses nothing: replicated, bounded retries, dead letters kept."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": get_settings().delivery_limit,
        "x-dead-letter-exchange": DEAD_LETTER_EXCHANGE,
        "x-dead-letter-routing-key": dead_letter_queue(queue),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


@cache
def events_queue() -> Queue:
    """Return the recorder's queue: every event of every order."""
    exchange = Exchange(EVENTS.name, type=EVENTS.type, **ours())
    return Queue(EVENTS_QUEUE, exchange, routing_key="#", queue_arguments=quorum_arguments(EVENTS_QUEUE), **ours())


def _dead_letter_queue(queue: str, *, limited_by_default: bool) -> Queue:
    name = dead_letter_queue(queue)
    arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-overflow": "reject-publish"}
    if limited_by_default:
        arguments["x-delivery-limit"] = _NO_LIMIT
    return Queue(name, DEAD_LETTERS, routing_key=name, queue_arguments=arguments)


def _audit_stream() -> Queue:
    arguments = {
        "x-queue-type": "stream",
        "x-max-age": _AUDIT_MAX_AGE,
        "x-max-length-bytes": _AUDIT_MAX_BYTES,
    }
    return Queue(AUDIT_STREAM, EVENTS, routing_key="#", queue_arguments=arguments)


def declare(connection: Connection, task_queues: Iterable[Queue]) -> None:
    """Declare everything, or raise amqp's ``NotFound`` where another has to and did not yet; safe to repeat.

    Closes ``connection``, whose channels kombu's own declarations leave open. The memory broker has neither streams nor
    delay queues.
    """
    with connection:
        queues = [*task_queues, events_queue()]
        if get_settings().topology == EXPECT:
            _look(connection.default_channel, [queue.name for queue in queues])
            return
        limited = _limits_deliveries_by_default(connection)
        channel = connection.default_channel
        for queue in [*queues, *(_dead_letter_queue(each.name, limited_by_default=limited) for each in queues)]:
            queue(channel).declare()
        if connection.transport.driver_type == "amqp":
            _audit_stream()(channel).declare()
            declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
            for queue in task_queues:
                bind_queue_to_native_delayed_delivery_exchange(connection, queue)


def _look(channel: Any, queues: list[str]) -> None:
    """Ask for each queue, which takes no right; whoever declares them declares these in this order."""
    for name in [*queues, *map(dead_letter_queue, queues), AUDIT_STREAM, level_name(0)]:
        channel.queue_declare(name, passive=True)


def _limits_deliveries_by_default(connection: Connection) -> bool:
    """Say whether the broker is RabbitMQ 4 or later: it limits deliveries unless told not to, 3.x cannot be told."""
    properties = getattr(connection.connection, "server_properties", {})
    version = str(properties.get("version", "0"))
    return int(version.partition(".")[0]) >= _FIRST_WITH_DEFAULT_LIMIT
