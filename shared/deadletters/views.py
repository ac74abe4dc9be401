"""How dead letters are shown: tables for people, plain data for scripts.

Tokens are masked. What came in a message is printed as it reads, never as commands to a terminal.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import Progress

from shared.contracts.events import EventType
from shared.database import utc_now
from shared.deadletters.desk import OrderRecords
from shared.deadletters.letters import QUEUES
from shared.deadletters.selection import Found

_SHORTEST_ERROR = 30  # columns of it that are shown on any terminal
_GAP = "  "
_SECRET = frozenset({"payment_method"})
_TOKEN = re.compile(r"\btok_\w+")
_MASK = "***"


def summary(found: Sequence[Found]) -> None:
    """Show every queue with how many and how old, then the groups by task and error."""
    queues = []
    for queue in QUEUES:
        times = [each.letter.died_at for each in found if each.letter.queue == queue]
        queues.append((queue, str(len(times)), _age(min((time for time in times if time), default=None))))
    _print_table(("queue", "dead letters", "oldest"), queues)
    kinds = Counter((each.letter.queue, each.letter.task or "-", each.error) for each in found)
    if kinds:
        rows = [(queue, task, str(count), error) for (queue, task, error), count in kinds.most_common()]
        _print_table(("queue", "task", "count", "error"), rows)


def letters(found: Iterable[Found]) -> None:
    """Show one line a letter; on a narrow terminal the error is cut, the ids never."""
    rows = [
        (
            each.letter.id,
            each.letter.order_id or "-",
            each.letter.task or "-",
            str(each.letter.attempts),
            _age(each.letter.died_at),
            each.letter.reason.partition(":")[0],
            each.error,
        )
        for each in found
    ]
    _print_table(("id", "order", "task", "attempts", "age", "reason", "error"), rows)


def as_json(each: Found) -> dict[str, Any]:
    """Return what a line shows, as data."""
    letter = each.letter
    return {
        "id": letter.id,
        "queue": letter.queue,
        "order": letter.order_id,
        "task": letter.task,
        "error": _masked(each.error),
        "reason": letter.reason,
        "attempts": letter.attempts,
        "died_at": letter.died_at and letter.died_at.isoformat(),
    }


def details(each: Found, records: OrderRecords, *, body: bool) -> dict[str, Any]:
    """Return all there is to know about a letter; its body only if asked for."""
    letter = each.letter
    timeline = records.timeline(letter.order_id) if letter.order_id else []
    parked = [
        entry.data
        for entry in timeline
        if entry.type == EventType.STEP_PARKED and entry.data.get("task_id") == letter.id
    ]
    told = {
        **as_json(each),
        "traceback": parked[-1].get("traceback") if parked else None,
        "rest_of_chain": letter.rest_of_chain(),
        "headers": _masked(letter.headers),
        "timeline": [
            {"time": entry.time.isoformat(), "type": entry.type, "data": _masked(dict(entry.data))}
            for entry in timeline
        ],
    }
    return {**told, "body": _masked(_payload(each))} if body else told


def one(told: Mapping[str, Any]) -> None:
    """Show the details of a letter."""
    for name in ("id", "queue", "order", "task", "error", "reason", "attempts", "died_at"):
        click.echo(f"{name:10}{_plain('-' if told[name] is None else told[name])}")
    click.echo(f"{'then':10}{_plain(' > '.join(told['rest_of_chain']) or '-')}\n")
    if told["traceback"]:
        click.echo("\n".join(map(_plain, str(told["traceback"]).splitlines())) + "\n")
    _print_table(("header", "value"), [(name, str(value)) for name, value in told["headers"].items()], cut=False)
    events = []
    for entry in told["timeline"]:
        data = {key: value for key, value in entry["data"].items() if key != "traceback"}
        events.append((entry["time"], entry["type"], str(data)))
    _print_table(("time", "event", "data"), events, cut=False)
    if "body" in told:
        click.echo(json.dumps(told["body"], indent=2, default=str))


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal; the function that is yielded counts one up."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _print_table(names: Sequence[str], rows: Iterable[Sequence[str]], *, cut: bool = True) -> None:
    """Print rows in columns, a line each; the last column is ``cut`` where a terminal ends, the others never are."""
    cells = [list(names), *([_plain(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    console = Console()
    if cut and console.is_terminal:
        before = sum(widths[:-1]) + len(widths[1:]) * len(_GAP)
        widths[-1] = min(widths[-1], max(_SHORTEST_ERROR, console.width - before))
    cells.insert(1, ["─" * width for width in widths])
    for row in cells:
        click.echo(_GAP.join(set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo()


def _payload(each: Found) -> Any:
    try:
        return each.letter.message.payload
    except Exception as error:
        return f"undecodable: {type(error).__name__}"


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _MASK if key in _SECRET else _masked(nested) for key, nested in value.items()}
    if isinstance(value, list):
        return [_masked(nested) for nested in value]
    return _TOKEN.sub(_MASK, value) if isinstance(value, str) else value


def _plain(value: Any) -> str:
    """Return a text on one line, its tokens masked, without what a terminal would obey."""
    return "".join(each if each.isprintable() else "\ufffd" for each in _TOKEN.sub(_MASK, str(value)))


def _age(moment: datetime | None) -> str:
    """Say how long ago: ``42s``, ``17m``, ``5h``, ``3d``."""
    if moment is None:
        return "-"
    seconds = max(0, int((utc_now() - moment).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
