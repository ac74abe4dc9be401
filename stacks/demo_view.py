"""How the demo shows its orders: a live table in a terminal, plain lines elsewhere, the summary at the end."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, JustifyMethod
from rich.live import Live
from rich.table import Table

from shared.contracts.events import EventType
from shared.contracts.saga import Status
from stacks.demo_orders import Fate
from stacks.reckoning import RESTING, Money

_COLOURS = {Status.COMPLETED: "green", Status.CANCELLED: "yellow", Status.PAID: "cyan", Status.PENDING: "dim"}
_COLUMNS = {"order": 8, "what it is": 18, "status": 16, "what happened": 20, "elapsed": 7}  # least widths
_FRAME_LINES = 4  # what a table has beside its rows
_SHORT_ID = 8


@dataclass(frozen=True, slots=True)
class Row:
    """An order that was placed, as the API shows it, and its fate."""

    fate: Fate
    order: dict[str, Any]
    history: tuple[str, ...] = ()  # what only the timeline tells, where it was read

    @property
    def rests(self) -> bool:
        """Say whether nothing more happens to it by itself."""
        return self.order["status"] in RESTING

    @property
    def seconds(self) -> float:
        """Return how long it was worked on, until now if it still is."""
        end = datetime.fromisoformat(self.order["updated_at"]) if self.rests else datetime.now(UTC)
        return max(0.0, (end - datetime.fromisoformat(self.order["created_at"])).total_seconds())

    @property
    def cells(self) -> tuple[str, ...]:
        """Return what a table shows."""
        status = self.order["status"]
        coloured = f"[{_COLOURS.get(status, 'magenta')}]{status}[/]"
        news = ", ".join(filter(None, [_known(self.order), *self.history]))
        return self.order["id"][:_SHORT_ID], self.fate.name, coloured, news, f"{self.seconds:.1f} s"


Show = Callable[[Sequence[Row]], None]


@contextmanager
def watching(console: Console) -> Iterator[Show]:
    """Yield what is to be called with all rows whenever they are read anew."""
    if console.is_terminal and not console.quiet:
        # no redirecting: the log, which goes to a file through stderr, must not pass through the table
        with Live(console=console, transient=True, auto_refresh=False, redirect_stderr=False) as live:
            yield lambda rows: live.update(_live_table(rows, console.height), refresh=True)
    else:
        yield _lines(console)


def table(rows: Sequence[Row], title: str) -> Table:
    """Return a table of orders."""
    result = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for column, width in _COLUMNS.items():
        justify: JustifyMethod = "right" if column == "elapsed" else "left"
        result.add_column(column, min_width=width, no_wrap=True, justify=justify)
    for row in rows:
        result.add_row(*row.cells)
    return result


def history(events: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Return what a timeline tells beyond the order itself: retries, refunds, a parked step."""
    types = Counter(event["type"] for event in events)
    refunded = ["refunded"] if types[EventType.PAYMENT_REFUNDED] else []
    retries = [f"{count} retries" if count > 1 else "1 retry"] if (count := types[EventType.STEP_RETRYING]) else []
    return (*refunded, *retries, *(["parked"] if types[EventType.STEP_PARKED] else []))


def show_summary(console: Console, summary: dict[str, Any]) -> None:
    """Print the summary."""
    latency = summary["latency"]
    p50, p99 = latency["p50_seconds"], latency["p99_seconds"]
    lines = [
        "",
        f"Orders    {summary['orders']}: {_counts(summary['statuses'])}",
        f"Latency   p50 {p50:.2f} s, p99 {p99:.2f} s; {latency['orders']} orders, {latency['measures']}",
        *(f"Ledger    {_money(currency, Money(**money))}" for currency, money in summary["ledger"].items()),
        *(f"Orders    {_money(currency, Money(**money))}" for currency, money in summary["orders_say"].items()),
        *(f"[red]Disagree[/]  {difference}" for difference in summary["differences"]),
        *(["[green]Agreed[/]    the provider's ledger and the orders, order by order"] * (not summary["differences"])),
        f"Kept in   {summary['folder']}: databases, the provider's ledger, log",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _live_table(rows: Sequence[Row], height: int) -> Table:
    """Show what fits: what still moves, then what was placed last."""
    moving = sorted(rows, key=lambda row: row.rests)
    shown = moving[: max(height - _FRAME_LINES, 1)]
    counts = Counter(row.order["status"] for row in rows)
    result = table(shown, f"{len(rows)} orders: {_counts(counts)}")
    if hidden := len(rows) - len(shown):
        result.caption = f"and {hidden} that ended earlier"
    return result


def _lines(console: Console) -> Show:
    told: set[str] = set()

    def show(rows: Sequence[Row]) -> None:
        for row in rows:
            if row.rests and row.order["id"] not in told:
                told.add(row.order["id"])
                short, kind, _, news, elapsed = row.cells
                line = f"{short}  {kind:<22}{row.order['status']:<18}{news:<18}{elapsed}"
                console.print(line, highlight=False, soft_wrap=True)

    return show


def _known(order: dict[str, Any]) -> str:
    """Say the last thing that the order itself tells; its timeline tells more, at a request for each order."""
    if order["failure"]:
        return str(order["failure"])
    if order["courier"]:
        return str(order["courier"])
    return "payment captured" if order["transaction_id"] else ""


def _counts(statuses: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))


def _money(currency: str, money: Money) -> str:
    captured, refunded = money.captured_cents / 100, money.refunded_cents / 100
    return f"{captured:,.2f} {currency} captured, {refunded:,.2f} refunded"
