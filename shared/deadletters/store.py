"""The store over the dead-letter queues.

Looking takes nothing away: what is held and not acknowledged goes back, in its place, when the connection ends. What
is moved is published, confirmed and mandatory, before it is acknowledged: killed at any point, a message is there at
least once.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from amqp.exceptions import ChannelError, MessageNacked, ResourceLocked
from celery import Celery
from kombu import Connection, Consumer, Message
from kombu import Queue as KombuQueue

from shared.contracts.queues import dead_letter_queue
from shared.deadletters.letters import QUEUES, DeadLetter, read
from shared.errors import WaybillError
from shared.messaging.broker import BROKER_ERRORS

#: What the broker or an earlier life wrote into the headers, and would count against the next one.
_STALE = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count", "x-opt-")
PROPERTIES = ("correlation_id", "reply_to", "message_id", "type", "app_id")
_PERSISTENT = 2
_PAGE = 5_000  # letters in one consumer's hands; the broker puts back the pages of up to 32 consumers in order
_SILENCE = 3.0  # seconds after which a letter that was counted comes no more
_OTHER_DESK = 10.0  # seconds to wait for another operator's command to end
_TICK = 1.0  # seconds between two signs of life to the broker
_JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


class Box:
    """One dead-letter queue, opened: its letters can be looked at, put back, replaced or taken out.

    What was fetched is held until the box is closed, so that fetching again yields only what died meanwhile.
    """

    def __init__(self, queue: str, connection: Connection) -> None:
        self._queue = queue
        self._connection = connection
        self._is_amqp = connection.transport.driver_type == "amqp"
        self._channel = self._open_channel()
        self._pages = 0
        self._held: list[Message] = []

    def __iter__(self) -> Iterator[DeadLetter]:
        """Fetch every letter that is there now, oldest first."""
        left = self._channel.queue_declare(dead_letter_queue(self._queue), passive=True).message_count
        while left > 0 and (page := self._fetch(min(left, _PAGE))):
            left -= len(page)
            for message in page:
                yield read(self._queue, message)

    def put_back(self, letter: DeadLetter, body: Any = None) -> None:
        """Publish a letter to the queue it died on; with another ``body``, encoded as JSON, where one is given.

        It stays a dead letter until it is taken out. Raises ``WaybillError`` when the queue is full or gone, and one
        of ``BROKER_ERRORS`` when the broker cannot be reached.
        """
        message = letter.message
        content = {"content_type": message.content_type, "content_encoding": message.content_encoding}
        properties = {name: message.properties.get(name) for name in PROPERTIES}
        if body is None:
            publish(self._channel, self._queue, message.body, _fresh(message), {**properties, **content})
        else:
            publish(self._channel, self._queue, json.dumps(body).encode(), _fresh(message), {**properties, **_JSON})

    def take_out(self, letter: DeadLetter) -> None:
        """Acknowledge a letter: it is gone from the dead letters."""
        letter.message.ack()

    def rest(self, seconds: float) -> None:
        """Wait; the broker would close a connection that falls silent."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not self._is_amqp:
                time.sleep(left)
                continue
            with suppress(TimeoutError):
                self._connection.drain_events(timeout=min(left, _TICK))
            self._connection.heartbeat_check()

    def close(self) -> None:
        """Put what was only looked at back; RabbitMQ does it by itself, the memory broker does not."""
        for message in self._held:
            if not message.acknowledged:
                with suppress(*BROKER_ERRORS):
                    message.requeue()

    def _fetch(self, size: int) -> list[Message]:
        """Fetch a page; fewer when somebody else was faster."""
        if not self._is_amqp:
            page = [each for _ in range(size) if (each := self._channel.basic_get(dead_letter_queue(self._queue)))]
            self._held += page
            return page
        self._pages += 1
        page = []
        consumer = Consumer(
            self._channel,
            [KombuQueue(dead_letter_queue(self._queue), no_declare=True)],
            on_message=page.append,
            prefetch_count=size,  # so that cancelling it leaves none half-way here
            tag_prefix=f"dlq-{self._pages:06}-",  # the broker puts pages back in the order of their tags
        )
        consumer.on_decode_error = lambda message, _error: page.append(message)  # cannot even be unpacked
        with consumer, suppress(TimeoutError):
            while len(page) < size:
                self._connection.drain_events(timeout=_SILENCE)
        return page

    def _open_channel(self) -> Any:
        """Open a channel, and keep other desks out: each would see only what the other does not hold."""
        deadline = time.monotonic() + _OTHER_DESK
        while True:
            channel = self._connection.channel()
            channel.auto_decode = False  # a body is bytes, whatever it says of its encoding
            try:
                if self._is_amqp:
                    channel.queue_declare(f"{dead_letter_queue(self._queue)}.desk", exclusive=True)
                return channel
            except ResourceLocked:
                if time.monotonic() >= deadline:
                    raise WaybillError(
                        f"{self._queue}: another `dlq` command has its dead letters in hand. Try again when it ended."
                    ) from None
                time.sleep(_TICK / 10)


@contextmanager
def open_box(app: Celery, queue: str) -> Iterator[Box]:
    """Open the dead letters of a queue; raise ``WaybillError`` for a queue that does not exist."""
    if queue not in QUEUES:
        raise WaybillError(f"{queue}: no such queue. There are {', '.join(QUEUES)}.")
    with app.connection_for_write() as connection:
        box = Box(queue, connection)
        try:
            yield box
        finally:
            box.close()


def publish(
    channel: Any, queue: str, body: Any, headers: Mapping[str, Any], properties: Mapping[str, str | None]
) -> None:
    """Publish exactly this and wait for the broker's word; raises as ``Box.put_back``."""
    properties = dict(properties)
    content = {name: properties.pop(name, None) for name in _JSON}
    message = channel.prepare_message(
        body, **content, headers=dict(headers), properties={**properties, "delivery_mode": _PERSISTENT}
    )
    try:
        channel.basic_publish(message, exchange="", routing_key=queue, mandatory=True)
    except MessageNacked:
        raise WaybillError(f"{queue}: full. What was not moved is still a dead letter; try again later.") from None
    except ChannelError as error:
        if "NO_ROUTE" not in str(error):
            raise
        raise WaybillError(
            f"{queue}: no such queue at the broker. What was not moved is still a dead letter; start its worker."
        ) from None


def bury(
    app: Celery, queue: str, body: bytes, headers: Mapping[str, Any], properties: Mapping[str, str | None]
) -> None:
    """Publish a message as a dead letter of ``queue``: what an export holds comes back this way."""
    with app.producer_or_acquire() as producer:
        publish(producer.channel, dead_letter_queue(queue), body, headers, properties)


def headers_of(message: Message) -> dict[str, Any]:
    """Return the headers that go with the body as it is here, which kombu has unpacked where it could."""
    packed = "compression" if not message.errors else None
    return {name: value for name, value in (message.headers or {}).items() if name != packed}


def _fresh(message: Message) -> dict[str, Any]:
    """Return the headers for a new life: same id and chain, no attempts counted, no delay."""
    kept = {name: value for name, value in headers_of(message).items() if not name.startswith(_STALE)}
    return {**kept, "retries": 0, "eta": None} if "task" in kept else kept
