"""What a dead letter is. Reading one never fails and runs nothing of what it holds: anybody may have sent it."""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from kombu import Message

from shared.contracts.events import CONTENT_TYPE, Event, parse_event
from shared.contracts.queues import EVENTS_QUEUE, Queue, TaskName
from shared.contracts.waybill import Waybill, parse_waybill
from shared.errors import MalformedMessage
from shared.messaging.consumer import MAX_BYTES, defect

QUEUES = (*map(str, Queue), EVENTS_QUEUE)
TASKS = frozenset(map(str, TaskName))
MALFORMED = "malformed"
#: What is decoded. Never what a message says it is: kombu would run a pickle.
READABLE = frozenset({"application/json", CONTENT_TYPE})
_ORDER_IN_REPR = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message that a worker or the recorder could not process; ``queue`` is where it died."""

    queue: str
    id: str
    task: str | None
    order_id: str | None
    reason: str
    attempts: int
    died_at: datetime | None
    message: Message = field(repr=False, compare=False)

    @property
    def is_malformed(self) -> bool:
        """Say whether it would die again as it is."""
        return self.reason.startswith(MALFORMED)

    @property
    def headers(self) -> dict[str, Any]:
        """Return its headers."""
        return dict(self.message.headers or {})

    def waybill(self) -> Waybill:
        """Return the waybill inside; raise ``MalformedMessage`` when there is none."""
        try:
            return parse_waybill(self.message.payload[0][0])
        except MalformedMessage:
            raise
        except Exception as error:
            raise MalformedMessage("message", ["body"]) from error

    def event(self) -> Event:
        """Return the event inside; raise ``MalformedMessage`` when there is none."""
        try:
            return parse_event(self.message.payload)
        except MalformedMessage:
            raise
        except Exception as error:
            raise MalformedMessage("message", ["body"]) from error

    def rest_of_chain(self) -> list[str]:
        """Return the tasks that would follow, next one first."""
        with suppress(Exception):
            return [str(step["task"]) for step in reversed(self.message.payload[2]["chain"] or [])]
        return []


def read(queue: str, message: Message) -> DeadLetter:
    """Look at a message that died on ``queue``."""
    message.accept = READABLE
    headers = message.headers or {}
    death, retries = _death(headers), headers.get("retries")
    return DeadLetter(
        queue=queue,
        id=_id(message),
        task=_text(headers.get("task")),
        order_id=_order_id(queue, message),
        reason=_reason(queue, message, death),
        attempts=retries + 1 if isinstance(retries, int) and retries >= 0 else 1,
        died_at=_time(death.get("time")),
        message=message,
    )


def raw_body(message: Message) -> bytes:
    """Return a body's bytes; some transports decode one whose encoding they know."""
    if isinstance(message.body, str):
        return message.body.encode(message.content_encoding or "utf-8")
    return bytes(message.body or b"")


def _death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the last death, which the broker notes first."""
    deaths = headers.get("x-death")
    return deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}


def _time(value: Any) -> datetime | None:
    with suppress(ValueError):
        known = datetime.fromisoformat(value) if isinstance(value, str) else value
        return known.replace(tzinfo=known.tzinfo or UTC) if isinstance(known, datetime) else None
    return None


def _id(message: Message) -> str:
    given = (message.headers or {}).get("id") or message.properties.get("message_id")
    return _text(given) or f"body-{hashlib.sha256(raw_body(message)).hexdigest()[:16]}"


def _reason(queue: str, message: Message, death: Mapping[str, Any]) -> str:
    if wrong := _event_defect(message) if queue == EVENTS_QUEUE else _task_defect(message):
        return f"{MALFORMED}: {wrong}"
    return (_text(death.get("reason")) or "rejected").replace("_", " ")


def _event_defect(message: Message) -> str | None:
    try:
        parse_event(message.payload)
    except Exception as error:
        return str(error) if isinstance(error, MalformedMessage) else f"body: {type(error).__name__}"
    return None


def _task_defect(message: Message) -> str | None:
    if wrong := defect(message, TASKS):
        return wrong
    try:
        args = message.payload[0]
        if args:  # the periodic tasks have none
            parse_waybill(args[0])
    except MalformedMessage as error:
        return str(error)
    return None


def _order_id(queue: str, message: Message) -> str | None:
    """Find the order in the header that shows it, which needs no decoding; an event has it in its subject."""
    if found := _ORDER_IN_REPR.search(_text((message.headers or {}).get("argsrepr")) or ""):
        return found.group()
    if len(message.body or b"") > MAX_BYTES:
        return None
    with suppress(Exception):
        body = message.payload
        return parse_event(body).subject if queue == EVENTS_QUEUE else parse_waybill(body[0][0]).order_id
    return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
