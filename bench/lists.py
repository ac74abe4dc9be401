"""How long a list takes on many orders: `python -m bench.lists --rows 1000000`.

Fills a private PostgreSQL with orders of 1,000 callers, then reads 50 orders after a cursor in the middle, and the
first page with its count; prints the best of five. A million rows take half a minute to fill.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine, text

from shared import migrations, settings
from shared.database import get_database
from shared.settings import Settings
from stacks.processes import Ports
from stacks.servers import Postgres
from workers.orders import listing
from workers.orders.listing import Cursor, Filter, Page

_START = datetime(2026, 1, 1, tzinfo=UTC)
_SIZE = 50
_FILL = """
INSERT INTO orders (id, owner, customer_id, status, amount_cents, currency, waybill, correlation_id, sweeps,
                    created_at, updated_at)
SELECT gen_random_uuid(), 'caller-' || i % 1000, 'cus_' || i % 100000,
       (ARRAY['COMPLETED', 'CANCELLED', 'COMPLETED', 'PENDING'])[1 + (i / 1000) % 4],
       100, 'EUR', '{"items": []}', 'bench', 0, :start + i * INTERVAL '1 second', now()
FROM generate_series(1, :rows) AS i
"""
_WHICH = {
    "every order": Filter(),
    "a status": Filter(status="PENDING"),
    "a caller": Filter(owner="caller-7"),
    "a caller and a status": Filter(owner="caller-7", status="COMPLETED"),
    "a caller since a time": Filter(owner="caller-7", created_after=_START + timedelta(hours=1)),
}


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="waybill-bench-") as folder:
        server = Postgres(Path(folder) / "postgres", Ports.free().postgres, durable=False, tied=True)
        server.start()
        server.wait_ready()
        try:
            settings.use(Settings(databases={"orders": server.create_databases(["orders"])["orders"]}))
            migrations.upgrade("orders")
            _fill(get_database("orders").engine, rows)
            _measure(Cursor(_START + timedelta(seconds=rows // 2), "0" * 36))
        finally:
            get_database("orders").engine.dispose()
            server.stop()


def _fill(engine: Engine, rows: int) -> None:
    print(f"filling in {rows:,} orders ...", flush=True)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text(_FILL), {"rows": rows, "start": _START})
        connection.execute(text("VACUUM ANALYZE orders"))
        connection.execute(text("RESET statement_timeout"))


def _measure(middle: Cursor) -> None:
    for name, which in _WHICH.items():
        after = _best(lambda which=which: listing.after(which, middle, _SIZE))  # type: ignore[misc]
        page = _best(lambda which=which: listing.page(which, 1, _SIZE))  # type: ignore[misc]
        print(f"{name:24} after the middle {after:8.1f} ms     first page with its count {page:8.1f} ms", flush=True)


def _best(read: Callable[[], Page]) -> float:
    """Return the milliseconds of the fastest of five."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        read()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


if __name__ == "__main__":
    main()
