"""Which dead letters are meant: by id, or by what they are."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from celery import Celery

from shared.deadletters.desk import OrderRecords
from shared.deadletters.letters import QUEUES, DeadLetter
from shared.deadletters.store import open_box
from shared.errors import WaybillError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@dataclass(frozen=True, slots=True)
class Selection:
    """What must be true of a letter; None leaves it open. Times are when it died."""

    ids: frozenset[str] = frozenset()
    task: str | None = None
    error: str | None = None
    order: str | None = None
    since: datetime | None = None
    before: datetime | None = None

    @property
    def is_everything(self) -> bool:
        """Say whether it leaves nothing out."""
        return self == Selection()

    def matches(self, letter: DeadLetter, error: str) -> bool:
        """Say whether a letter is meant; ``error`` is what is known of why it died."""
        return (
            (not self.ids or letter.id in self.ids)
            and self.task in (None, letter.task)
            and self.order in (None, letter.order_id)
            and (self.error is None or self.error.lower() in error.lower())
            and (self.since is None or (letter.died_at is not None and letter.died_at >= self.since))
            and (self.before is None or (letter.died_at is not None and letter.died_at < self.before))
        )


@dataclass(frozen=True, slots=True)
class Found:
    """A letter and why it died, as far as is known."""

    letter: DeadLetter
    error: str


def find(app: Celery, records: OrderRecords, queues: Iterable[str], selection: Selection) -> list[Found]:
    """Look through the dead letters of ``queues`` and leave them where they are; oldest first within each.

    Raises ``WaybillError`` for an id that no letter has.
    """
    found: list[Found] = []
    for queue in queues:
        with open_box(app, queue) as box:
            found += explain(records, list(box))
    chosen = [each for each in found if selection.matches(each.letter, each.error)]
    missing = selection.ids - {each.letter.id for each in chosen}
    if missing:
        raise WaybillError(f"{', '.join(sorted(missing))}: no such dead letter. `dlq list QUEUE` shows the ids.")
    return chosen


def explain(records: OrderRecords, letters: list[DeadLetter]) -> list[Found]:
    """Add to each letter why it died, asking for all of them at once."""
    task_ids: dict[str, set[str]] = {}
    for letter in letters:
        if letter.order_id and not letter.is_malformed:
            task_ids.setdefault(letter.order_id, set()).add(letter.id)
    errors = records.errors(task_ids) if task_ids else {}
    return [Found(letter, errors.get(letter.id, letter.reason)) for letter in letters]


def queues_of(queue: str | None) -> tuple[str, ...]:
    """Return one queue, or all for None; raise ``WaybillError`` for one that does not exist."""
    if queue is not None and queue not in QUEUES:
        raise WaybillError(f"{queue}: no such queue. There are {', '.join(QUEUES)}.")
    return (queue,) if queue else QUEUES


def moment(text: str) -> datetime:
    """Read a point in time: ISO 8601, or how long ago: ``90s``, ``15m``, ``2h``, ``3d``. Raises ``ValueError``."""
    if ago := re.fullmatch(r"(\d{1,6})([smhd])", text):
        return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    known = datetime.fromisoformat(text)
    return known if known.tzinfo else known.replace(tzinfo=UTC)
