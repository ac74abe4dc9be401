"""``make demo``: orders of every fate through the embedded stack, over real HTTP, and a reckoning at the end.

Exits with 0 when the payment provider's ledger and the orders agree, with 1 and a line for each difference when
they do not. Touches nothing but a folder of its own and the loopback.
"""

import argparse
import contextlib
import json
import logging
import math
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from shared import settings
from shared.contracts.events import EventType
from shared.contracts.saga import Status
from shared.errors import WaybillError
from shared.settings import Settings
from shared.telemetry.logs import configure_logging
from stacks.demo_client import DemoClient
from stacks.demo_orders import DemoOrder, mix
from stacks.demo_view import Row, Show, history, show_summary, table, watching
from stacks.embedded import embedded_stack
from stacks.reckoning import OrderAccount, reckon

LIMIT = 60.0  # seconds until an order that still moves counts as hanging
_TICK = 0.2  # seconds between two looks
_ORDERS_A_TICK = 4
_FEWEST, _MOST = 30, 200  # all fates; one page of the API
_STRAY_CENTS = 666
_UNLIMITED = "100000/second"
#: The event that ends an order's latency.
_CLOSING = {Status.COMPLETED: EventType.ORDER_COMPLETED, Status.CANCELLED: EventType.ORDER_CANCELLED}


def run(options: argparse.Namespace) -> int:
    """Run the demo; return the exit code."""
    console, started = Console(quiet=options.json), time.monotonic()
    folder = _folder()
    with contextlib.ExitStack() as stack:
        _say(console, f"Starting the embedded stack; it logs to {folder / 'demo.log'}")
        chosen = _settings(folder)
        stack.enter_context(_logging_to(folder / "demo.log"))
        configure_logging(chosen, "demo")
        running = stack.enter_context(embedded_stack(chosen))
        stack.callback(_say, console, "Stopping the stack")
        client = DemoClient(f"http://{running.api_host}:{running.port}", running.gateway_url)
        with watching(console) as show:
            rows = send_and_watch(client, mix(options.orders, options.seed), show)
        if options.stray_charge:
            client.charge("demo-stray-charge", _STRAY_CENTS)
        timelines = {row.order["id"]: _timeline(client, row.order) for row in rows}
        summary = summarise(rows, timelines, client.ledger())
        summary |= {"seconds": round(time.monotonic() - started, 1), "folder": str(folder)}
        if console.is_terminal:
            told = [replace(row, history=history(timelines[row.order["id"]])) for row in rows]
            console.print(table(told, "How they ended"))
        show_summary(console, summary)
    if options.json:
        print(json.dumps(summary, indent=2))
    return 1 if summary["differences"] else 0


def send_and_watch(client: DemoClient, orders: Sequence[DemoOrder], show: Show) -> list[Row]:
    """Place the orders, a few at a time, and look at them all until each has ended or is parked, or ``LIMIT``."""
    deadline = time.monotonic() + LIMIT
    waiting, placed = list(enumerate(orders, start=1)), {}
    while True:
        for number, each in waiting[:_ORDERS_A_TICK]:
            placed[client.place(each.body, f"demo-{number:03}")] = each.fate
        del waiting[:_ORDERS_A_TICK]
        rows = [Row(placed[order["id"]], order) for order in client.orders(len(placed))]
        show(rows)
        if len(rows) == len(orders) and all(row.rests for row in rows):
            return rows
        if time.monotonic() > deadline:
            break
        time.sleep(_TICK)
    if missing := len(placed) - len(rows):
        raise WaybillError(f"{missing} orders that were accepted are missing from the list; see the log")
    return rows


def summarise(
    rows: Sequence[Row], timelines: dict[str, list[dict[str, Any]]], ledger: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """Compare orders and ledger; return the figures and every difference."""
    reckoning = reckon([OrderAccount.from_api(row.order, timelines[row.order["id"]]) for row in rows], ledger)
    unexpected = [
        f"{row.order['id']} ({row.fate.name}) is {row.order['status']}, not {row.fate.ends}"
        for row in rows
        if row.order["status"] != row.fate.ends
    ]
    latencies = sorted(filter(None, (_latency(row.order, timelines[row.order["id"]]) for row in rows)))
    return {
        "orders": len(rows),
        "statuses": dict(Counter(row.order["status"] for row in rows)),
        "latency": {
            "measures": "from created_at to order.completed or order.cancelled, forced faults included",
            "orders": len(latencies),
            "p50_seconds": _percentile(latencies, 0.50),
            "p99_seconds": _percentile(latencies, 0.99),
        },
        "ledger": {currency: asdict(money) for currency, money in reckoning.ledger.items()},
        "orders_say": {currency: asdict(money) for currency, money in reckoning.orders.items()},
        "differences": [*reckoning.differences, *unexpected],
    }


def _timeline(client: DemoClient, order: dict[str, Any]) -> list[dict[str, Any]]:
    """Read an order's events; the one that closes it is recorded a moment after the status is."""
    closing, deadline = _CLOSING.get(order["status"]), time.monotonic() + 2
    while True:
        events = client.events(order["id"])
        if closing is None or any(event["type"] == closing for event in events) or time.monotonic() > deadline:
            return events
        time.sleep(_TICK)


def _latency(order: dict[str, Any], events: Iterable[dict[str, Any]]) -> float | None:
    """Return the seconds from an order's placing to its end, None if it did not end."""
    closing = _CLOSING.get(order["status"])
    ends = [datetime.fromisoformat(event["time"]) for event in events if event["type"] == closing]
    return (min(ends) - datetime.fromisoformat(order["created_at"])).total_seconds() if ends else None


def _percentile(ordered: Sequence[float], share: float) -> float:
    return round(ordered[math.ceil(share * len(ordered)) - 1], 3) if ordered else 0.0


def _settings(folder: Path) -> Settings:
    """Return the embedded stack's settings, none from the environment; impatient, so that faults take seconds."""
    return Settings(
        var_dir=folder,
        port=0,
        gateway_timeout=1.0,
        step_max_retries=3,
        step_backoff_max=1,
        log_format="json",
        auth_disabled=True,
        rate_limit_create=_UNLIMITED,
        rate_limit_list=_UNLIMITED,
        rate_limit_detail=_UNLIMITED,
    )


def _folder() -> Path:
    parent = settings.get_settings().var_dir / "demo"
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=parent))


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send whatever the process logs within the block to a file: the terminal belongs to the table."""
    with path.open("w") as file, contextlib.redirect_stderr(file):
        logging.captureWarnings(True)
        yield


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stacks.demo", description=__doc__)
    parser.add_argument("--orders", type=int, default=40, metavar="N", help=f"{_FEWEST} to {_MOST} (default 40)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="another seed, another mix")
    parser.add_argument("--json", action="store_true", help="print the summary only, as JSON")
    parser.add_argument(
        "--stray-charge",
        action="store_true",
        help="charge once behind the orders' back, to see the reckoning find it",
    )
    options = parser.parse_args()
    if not _FEWEST <= options.orders <= _MOST:
        parser.error(f"--orders must be {_FEWEST} to {_MOST}")
    return options


def main() -> int:
    """The command line."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        return run(options)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130
    except (WaybillError, OSError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
