"""Prepare what the fleet's processes expect, before they start: ``python -m workers.setup deploy/couriers.json``.

Migrates every service's database, loads the couriers and declares the exchanges and queues, so that no process needs
the right to make them. Waits for servers that are still starting. Safe to repeat, and two at once do no harm.
"""

import sys
from functools import partial
from pathlib import Path

from shared import migrations
from shared.errors import Transient, WaybillError
from shared.messaging.app import create_app, declare_topology
from shared.messaging.broker import BROKER_ERRORS
from shared.process import start_process, wait_until
from shared.settings import SERVICES, get_settings
from shared.telemetry.logs import get_logger
from workers.delivery.roster import load_roster

_ARGUMENTS = 2

log = get_logger(__name__)


def prepare(couriers: Path) -> None:
    """Bring databases and broker to what this code needs; raise ``WaybillError`` in one line for what is wrong."""
    for service in SERVICES:
        url = get_settings().database_url(service)
        wait_until(partial(_migrate, service), f"{service.upper()}_DATABASE_URL", url)
    log.info("couriers_loaded", couriers=load_roster(couriers))
    try:
        declare_topology(create_app("setup"))
    except BROKER_ERRORS as error:
        raise WaybillError(f"BROKER_URL: {error}. Correct the user's rights, or what is declared otherwise.") from error
    log.info("topology_declared")


def _migrate(service: str) -> str | None:
    try:
        migrations.upgrade(service)
    except Transient as error:
        return str(error).strip().partition("\n")[0]
    log.info("migrated", database=service)
    return None


def main() -> int:
    """Run from the command line."""
    if len(sys.argv) != _ARGUMENTS:
        sys.stderr.write("usage: python -m workers.setup COURIERS\n")
        return 2
    start_process("setup")
    try:
        prepare(Path(sys.argv[1]))
    except WaybillError as error:
        sys.stderr.write(f"setup: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
