"""Put dead letters back, replace, drop and import them; each leaves a line on its order's timeline."""

import getpass
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery

from shared.contracts.events import Event, EventType, new_event
from shared.contracts.queues import EVENTS_QUEUE, Queue, TaskName
from shared.contracts.waybill import parse_waybill
from shared.database import utc_now
from shared.deadletters.archive import Line, write
from shared.deadletters.desk import OrderRecords
from shared.deadletters.letters import TASKS, DeadLetter
from shared.deadletters.store import Box, bury, open_box
from shared.errors import MalformedMessage, WaybillError
from shared.messaging.consumer import defect
from shared.messaging.dispatch import dispatch
from shared.messaging.events import publish_events
from shared.settings import get_settings

_SOURCE = "dlq"
_LONGEST_HOLD = 600.0  # seconds; RabbitMQ takes back what is held for half an hour
_STRAGGLING = 2.0  # seconds for letters that another command of ours has just let go of
_TICK = 0.2  # seconds
#: What is dropped here leaves no order hanging: a customer is not told, an event is stated again by the sweeper.
_INESSENTIAL_QUEUES = frozenset({Queue.NOTIFICATIONS, EVENTS_QUEUE})
_INESSENTIAL_TASKS = frozenset({TaskName.NOTIFY, TaskName.SWEEP, TaskName.RECONCILE})


def requeue(
    app: Celery, records: OrderRecords, letters: Sequence[DeadLetter], *, pause: float = 0.0
) -> Iterator[DeadLetter]:
    """Put letters back, one by one, ``pause`` seconds apart; yields each that the broker confirmed.

    Those that are not reached - interrupted, refused - stay dead letters.
    """
    known = known_orders(records, letters)
    for number, (box, letter) in enumerate(_fetch(app, letters)):
        if number:
            box.rest(pause)
        with undisturbed():
            put_back(app, box, letter, known)
            yield letter


def put_back(app: Celery, box: Box, letter: DeadLetter, known: Mapping[str, str]) -> None:
    """Put one letter back and say so on its order's timeline; ``known`` are the correlation ids by order."""
    box.put_back(letter)
    publish_events(app, *_audit(known, letter, EventType.DEADLETTER_REQUEUED))
    box.take_out(letter)


def requeue_edited(app: Celery, records: OrderRecords, letter: DeadLetter, text: str, *, copies: int = 1) -> None:
    """Put a letter, and any ``copies`` with its id, back with another waybill.

    Raises ``WaybillError`` if that breaks the schema or is another order's.
    """
    try:
        waybill = parse_waybill(json.loads(text))
    except (json.JSONDecodeError, MalformedMessage, RecursionError) as error:
        raise WaybillError(f"{letter.id}: {error}. Nothing was changed; edit it again.") from None
    if letter.order_id not in (None, waybill.order_id):
        raise WaybillError(f"{letter.id}: order_id is another order's. Nothing was changed.")
    known = known_orders(records, [letter])
    for box, dead in _fetch(app, [letter] * copies):
        _, kwargs, embed = dead.message.payload
        with undisturbed():
            box.put_back(dead, [[waybill.to_dict()], kwargs, embed])
            publish_events(app, *_audit(known, dead, EventType.DEADLETTER_EDITED))
            box.take_out(dead)


def editable(letter: DeadLetter) -> str:
    """Return a letter's waybill as indented JSON; ``WaybillError`` where editing it would not help."""
    if wrong := defect(letter.message, TASKS):
        raise WaybillError(f"{letter.id}: {wrong}; no other waybill would help. Use `dlq export` or `dlq drop`.")
    args, _, _ = letter.message.payload
    if not args or not isinstance(args[0], dict):
        raise WaybillError(f"{letter.id}: there is no waybill in it to edit. Use `dlq export` or `dlq drop`.")
    return json.dumps(args[0], indent=2)


def drop(
    app: Celery,
    records: OrderRecords,
    letters: Sequence[DeadLetter],
    reason: str,
    file: Path,
    *,
    done: list[str],
    cancelled: set[str],
) -> None:
    """Export letters, then take them out; an order that would be left hanging is ``cancelled`` and undone.

    The ids of what is out go to ``done``.
    """
    write(file, letters)
    known = known_orders(records, letters)
    for box, letter in _fetch(app, letters):
        with undisturbed():
            audit = _audit(known, letter, EventType.DEADLETTER_DROPPED, reason=reason)
            publish_events(app, *audit)
            if audit and _is_essential(letter) and (way := records.cancel(audit[0].subject)):
                dispatch(app, way)
                cancelled.add(audit[0].subject)
            box.take_out(letter)
            done.append(letter.id)


def new_export() -> Path:
    """Name a new file for letters that are dropped."""
    return get_settings().var_dir / "dropped" / f"{utc_now():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}.jsonl"


def read(app: Celery, lines: Sequence[Line], *, done: list[str]) -> None:
    """Bury the letters of a file again; the queues of those that the broker confirmed go to ``done``."""
    for line in lines:
        with undisturbed():
            bury(app, *line)
            done.append(line[0])


def known_orders(records: OrderRecords, letters: Sequence[DeadLetter]) -> Mapping[str, str]:
    """Return the correlation ids of the letters' orders; a letter of no known order has no timeline to write on."""
    return records.correlation_ids({letter.order_id for letter in letters if letter.order_id})


def _is_essential(letter: DeadLetter) -> bool:
    return letter.queue not in _INESSENTIAL_QUEUES and letter.task not in _INESSENTIAL_TASKS


def _fetch(app: Celery, letters: Sequence[DeadLetter]) -> Iterator[tuple[Box, DeadLetter]]:
    """Fetch these letters, each once, to be moved; ``WaybillError`` at the end if some are there no more."""
    gone = 0
    for queue in dict.fromkeys(letter.queue for letter in letters):
        wanted = Counter(letter.id for letter in letters if letter.queue == queue)
        give_up_at = time.monotonic() + _STRAGGLING
        while wanted and time.monotonic() < give_up_at:
            before = wanted.total()
            yield from _hold(app, queue, wanted)
            if wanted.total() < before:
                give_up_at = time.monotonic() + _STRAGGLING
            else:
                time.sleep(_TICK)
        gone += wanted.total()
    if gone:
        raise WaybillError(f"{gone} of {len(letters)} are dead letters no more: somebody else moved them meanwhile.")


def _hold(app: Celery, queue: str, wanted: Counter[str]) -> Iterator[tuple[Box, DeadLetter]]:
    """Open a queue's dead letters for a while, and cross off what is found of ``wanted``."""
    until = time.monotonic() + _LONGEST_HOLD
    with open_box(app, queue) as box:
        for letter in box:
            if letter.id in wanted:
                wanted.subtract([letter.id])
                if not wanted[letter.id]:
                    del wanted[letter.id]
                yield box, letter
            if not wanted or time.monotonic() >= until:
                return


def _audit(known: Mapping[str, str], letter: DeadLetter, event_type: str, **more: Any) -> list[Event]:
    """State who did what to which letter."""
    if letter.order_id is None or letter.order_id not in known:
        return []
    event = new_event(
        event_type,
        letter.order_id,
        source=_SOURCE,
        correlation_id=known[letter.order_id],
        data={"by": f"{_user()}@{socket.gethostname()}", "step": letter.task, "task_id": letter.id, **more},
        discriminator=f"{letter.id}/{uuid.uuid4()}",
    )
    return [event]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put Ctrl-C off to the end of the block, so that a letter is moved whole and counted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
