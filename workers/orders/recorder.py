"""The recorder: applies events to the orders database in batches. ``python -m workers.orders.recorder``.

A message is acknowledged after its batch is committed and the conclusions drawn from it are confirmed; a batch
that is delivered again changes nothing.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from celery import Celery
from kombu import Message
from kombu.mixins import ConsumerMixin

from shared.alive import say_alive
from shared.contracts.events import CONTENT_TYPE, Event, parse_event
from shared.errors import MalformedMessage, Transient
from shared.messaging.app import declare_topology
from shared.messaging.broker import BROKER_ERRORS
from shared.messaging.events import publish_events
from shared.messaging.topology import events_queue
from shared.process import start_process
from shared.telemetry.logs import get_logger
from workers.orders import operations

BATCH = 200
LINGER = 0.02  # seconds that a first event waits for company
_RETRY_AFTER = 1.0  # seconds without the database before it is asked again

log = get_logger(__name__)


class Recorder(ConsumerMixin):
    """Consumes ``orders.events``. Nothing undecodable is lost or stops it: it goes to the dead-letter queue."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.connection = app.connection_for_read()
        self._pending: list[Message] = []
        self._flush_at = 0.0

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:  # noqa: ARG002 - kombu's signature
        """Start afresh on every connection: what was pending on the last one is delivered again."""
        self._pending.clear()
        declare_topology(self.app)
        return [consumer([events_queue()], on_message=self._take, prefetch_count=2 * BATCH)]

    def serve(self) -> None:
        """Record until told to stop, through every outage of the broker."""
        while not self.should_stop:
            try:
                self.run(safety_interval=LINGER)
            except BROKER_ERRORS as error:  # a queue whose node is still starting; kombu waits for connections only
                self.on_connection_error(error, _RETRY_AFTER)
                time.sleep(_RETRY_AFTER)

    def on_iteration(self) -> None:
        """Flush the batch when it is full or has lingered."""
        say_alive("recorder")
        if len(self._pending) >= BATCH or (self._pending and time.monotonic() >= self._flush_at):
            self.flush()

    @contextmanager
    def establish_connection(self) -> Iterator[Any]:
        """Connect, asking often enough that an end of the outage, or of this process, is soon noticed."""
        with self.connection.clone() as connection:
            connection.ensure_connection(
                self.on_connection_error, interval_start=0.5, interval_step=0.5, interval_max=2
            )
            yield connection

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Keep what cannot even be unpacked; kombu would acknowledge it, and log its body."""
        log.warning("event_malformed", error=type(exc).__name__)
        message.reject()

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        """Say which setting cannot be reached; kombu tries again, unless we were told to stop."""
        if self.should_stop:
            raise SystemExit(0)
        log.warning("broker_unreachable", variable="BROKER_URL", error=str(exc), retry_in=interval)

    def on_consume_end(self, connection: Any, channel: Any) -> None:  # noqa: ARG002 - kombu's signature
        """Told to stop: record what is pending while the connection still takes acknowledgements."""
        self.flush()

    def flush(self) -> None:
        """Record what is pending; leave it pending while the database or the broker is away."""
        readable = [(message, event) for message in self._pending if (event := _read(message))]
        self._pending = [message for message, _ in readable]
        try:
            self._settle(readable)
        except (Transient, *BROKER_ERRORS) as error:
            log.warning("recording_postponed", error=str(error), events=len(self._pending))
            self._flush_at = time.monotonic() + _RETRY_AFTER

    def _settle(self, batch: list[tuple[Message, Event]]) -> None:
        """Record a batch; if one event of it cannot be stored, each by itself, and that one is a dead letter."""
        try:
            orphans = self._record([event for _, event in batch])
        except (Transient, *BROKER_ERRORS):
            raise
        except Exception:
            if len(batch) > 1:
                for one in batch:
                    self._settle([one])
                return
            log.exception("event_unrecordable", event_id=batch[0][1].id)
            orphans = {batch[0][1].id}
        for message, event in batch:
            if event.id in orphans:
                log.warning("event_refused", order_id=event.subject, event_id=event.id)
                message.reject()
            else:
                message.ack()
            self._pending.remove(message)

    def _record(self, events: list[Event]) -> set[str]:
        if not events:
            return set()
        conclusions, orphans = operations.record(events)
        publish_events(self.app, *conclusions)
        log.debug("events_recorded", events=len(events))
        return {event.id for event in orphans}

    def _take(self, message: Message) -> None:
        if not self._pending:
            self._flush_at = time.monotonic() + LINGER
        self._pending.append(message)


def _read(message: Message) -> Event | None:
    """Parse a message's event; reject what can never be one."""
    try:
        message.accept = {CONTENT_TYPE, "application/json"}
        return parse_event(message.decode())
    except Exception as error:
        kind = error if isinstance(error, MalformedMessage) else type(error).__name__
        log.warning("event_malformed", error=str(kind))
        message.reject()
        return None


def main() -> int:
    """Run as a process of its own until SIGTERM or SIGINT."""
    start_process("recorder", databases=["orders"])
    from workers.orders import app  # noqa: PLC0415 - makes the app, on purpose only here

    recorder = Recorder(app)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        recorder.should_stop = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    recorder.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
