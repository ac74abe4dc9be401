"""What the fault run shows: progress while it runs, then a table of the promises, the figures, and JSON."""

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shared.contracts.events import EventType
from stacks.chaos_check import Evidence, settling_times

_EXAMPLES = 3
_EVERY = 15.0  # seconds between two lines of progress where there is no terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run's result. ``findings``: for each promise what breaks it; ``ok`` is the verdict."""

    seed: int
    scenario: str
    ok: bool
    findings: Mapping[str, Sequence[str]]
    figures: Mapping[str, Any]
    faults: Mapping[str, int]
    http_errors: Mapping[str, int]
    requeues: Sequence[Mapping[str, Any]]
    timelines: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of the orders that break a promise
    log_events: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return it all as one JSON object."""
        return json.dumps(asdict(self), indent=2, default=str)


class Display:
    """Tells how far the run is: a spinner on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = time.monotonic()
        self._status = console.status("")
        self._told_at = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show within the block."""
        with self._status:
            yield

    def say(self, what: str) -> None:
        """Print a line with the seconds since the start."""
        self._console.print(f"[dim]{time.monotonic() - self._begun:6.1f} s[/]  {what}", highlight=False)

    def progress(self, what: str) -> None:
        """Show where things stand."""
        if self._console.is_terminal:
            self._status.update(what)
        elif time.monotonic() - self._told_at > _EVERY:
            self._told_at = time.monotonic()
            self.say(what)


def show(report: Report, console: Console) -> None:
    """Print the tables."""
    promises = Table(
        "promise broken by", "", "for example", title=f"Fault run, seed {report.seed}", title_justify="left"
    )
    for promise, broken in report.findings.items():
        colour = "red" if broken else "green"
        promises.add_row(promise, f"[{colour}]{len(broken)}[/]", "\n".join(broken[:_EXAMPLES]))
    console.print(promises)
    figures = Table("figure", "", show_header=False)
    parts = {**report.figures, "faults": report.faults, "HTTP errors the clients saw": report.http_errors}
    for name, value in {**parts, "dead letters put back, by call": report.requeues}.items():
        figures.add_row(name, _text(value))
    console.print(figures)
    for order, timeline in list(report.timelines.items())[:_EXAMPLES]:
        console.print(f"{order}:", *timeline, sep="\n  ", highlight=False, markup=False)


def figures_of(evidence: Evidence) -> dict[str, Any]:
    """Return the figures that the orders and their timelines hold; times are seconds."""
    times = settling_times(evidence)
    types = Counter(event["type"] for events in evidence.events.values() for event in events)
    moments = [event["time"] for events in evidence.events.values() for event in events]
    span = (max(moments) - min(moments)).total_seconds() if moments else 0.0
    return {
        "orders": len(evidence.orders),
        "answered 202": len(evidence.accepted),
        "by status": dict(evidence.by_status()),
        "settled per second": round(len(times) / span, 1) if span else 0.0,
        "seconds to settle, p50": percentile(times, 0.5),
        "seconds to settle, p99": percentile(times, 0.99),
        "cancellations accepted": len(evidence.cancelled),
        "steps retried": types[EventType.STEP_RETRYING],
        "steps parked": types[EventType.STEP_PARKED],
        "orders expired": types[EventType.ORDER_EXPIRED],
        "payments declined": types[EventType.PAYMENT_DECLINED],
        "payments refunded": types[EventType.PAYMENT_REFUNDED],
    }


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the value that ``share`` of the ordered values do not exceed."""
    return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 2) if ordered else None


def timelines(evidence: Evidence, findings: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return what happened to the orders that the findings name."""
    named = "\n".join(line for broken in findings.values() for line in broken)
    return {
        order_id: [_brief(event) for event in sorted(events, key=lambda event: event["time"])]
        for order_id, events in evidence.events.items()
        if order_id in named
    }


def log_events(folder: Path) -> Counter[str]:
    """Count the log's warnings and errors by event, sweeps, and tracebacks that nobody caught."""
    found: Counter[str] = Counter()
    for path in sorted(folder.glob("*.log")):
        for line in path.read_text(errors="replace").splitlines():
            found.update(_notable(path.stem, line))
    return found


def _notable(process: str, line: str) -> list[str]:
    if line.startswith("Traceback"):
        return [f"{process}: uncaught traceback"]
    try:
        entry = json.loads(line) if line.startswith("{") else {}
    except ValueError:
        return []
    event = str(entry.get("event", ""))
    notable = entry.get("level") in ("warning", "error", "critical") or event == "order_swept"
    return [f"{process}: {event[:60]}"] if notable else []


def _brief(event: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in event["data"].items() if name != "traceback"}
    return f"{event['time']:%H:%M:%S.%f} {event['type']} {kept or ''}"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {name}" for name, count in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(json.dumps(each) for each in value) or "none"
    return str(value)
