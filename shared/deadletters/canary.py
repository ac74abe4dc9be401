"""Put a few dead letters back and see what becomes of them, before the rest follows."""

import time
from collections.abc import Collection, Sequence

from celery import Celery

from shared.contracts.events import EventType
from shared.contracts.queues import EVENTS_QUEUE
from shared.deadletters.desk import Entry, OrderRecords
from shared.deadletters.letters import DeadLetter
from shared.deadletters.moves import known_orders, put_back, undisturbed
from shared.deadletters.store import open_box
from shared.errors import WaybillError

_POLL = 0.5  # seconds between two looks
#: What somebody else may state about an order meanwhile; it does not tell that the step was done.
_NO_PROGRESS = frozenset({EventType.ORDER_PLACED, EventType.ORDER_CANCEL_REQUESTED, EventType.ORDER_EXPIRED})


def choose(records: OrderRecords, letters: Sequence[DeadLetter], count: int) -> list[DeadLetter]:
    """Return the first letters whose fate a timeline will tell; ``WaybillError`` when there is none."""
    known = known_orders(records, letters)
    chosen = [letter for letter in letters if letter.order_id in known][:count]
    if letters and not chosen:
        raise WaybillError("--canary: none of them is of a known order, so nothing would tell its fate.")
    return chosen


def send(app: Celery, records: OrderRecords, letters: Sequence[DeadLetter], *, timeout: float, done: list[str]) -> None:
    """Put letters back, their ids to ``done``; ``WaybillError`` unless all succeed in ``timeout`` seconds."""
    for queue in dict.fromkeys(letter.queue for letter in letters):
        _send(app, records, queue, {letter.id for letter in letters if letter.queue == queue}, timeout, done)


def _send(
    app: Celery, records: OrderRecords, queue: str, ids: Collection[str], timeout: float, done: list[str]
) -> None:
    waiting: dict[str, tuple[DeadLetter, int]] = {}
    with open_box(app, queue) as box:
        chosen = [letter for letter in box if letter.id in ids]
        known = known_orders(records, chosen)
        for letter in chosen:
            before = _progress(records, letter)
            with undisturbed():
                put_back(app, box, letter, known)
                done.append(letter.id)
            waiting[letter.id] = letter, before
        deadline = time.monotonic() + timeout
        while waiting:
            # All else is in our hands by now, so what is seen here died since.
            if died := {letter.id for letter in box} & waiting.keys():
                raise WaybillError(f"{', '.join(sorted(died))}: the canary died again. The rest was not touched.")
            waiting = {key: (each, n) for key, (each, n) in waiting.items() if _progress(records, each) <= n}
            if waiting and time.monotonic() >= deadline:
                raise WaybillError(f"{', '.join(waiting)}: no outcome after {timeout:g} s. The rest was not touched.")
            if waiting:
                box.rest(_POLL)


def _progress(records: OrderRecords, letter: DeadLetter) -> int:
    """Count what tells that a letter was processed: its own event, or that its order moved on.

    A retry, a parking and an operator's hand are no progress.
    """
    entries = records.timeline(str(letter.order_id))
    if letter.queue == EVENTS_QUEUE:
        event = letter.event()
        return sum(1 for entry in entries if (entry.type, entry.time) == (event.type, event.time))
    return sum(1 for entry in entries if _moves_on(entry))


def _moves_on(entry: Entry) -> bool:
    return not entry.type.startswith(("step.", "deadletter.")) and entry.type not in _NO_PROGRESS
