"""``python -m workers.setup``, and the sign of life by which a container's health is judged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.contracts.queues import Queue
from shared.settings import SERVICES
from stacks.processes import LocalProcess
from tests.integration.nodes import Fleet, eventually

SECONDS = 60
COURIERS = "deploy/couriers.json"
Setup = Callable[..., tuple[int | None, str]]


@pytest.fixture
def setup(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Setup]:
    """Run the command on new databases; its exit code and its last line."""
    names = {service: f"{service}_{abs(hash(request.node.name))}" for service in SERVICES}
    urls = fleet.postgres.create_databases(names.values())
    databases = {f"{service.upper()}_DATABASE_URL": urls[name] for service, name in names.items()}
    runs: list[LocalProcess] = []

    def run(couriers: str = COURIERS, **more: str) -> tuple[int | None, str]:
        command = [sys.executable, "-m", "workers.setup", couriers]
        runs.append(fleet.process(f"setup-{request.node.name}-{len(runs)}", command, **{**databases, **more}))
        runs[-1].start()
        code = runs[-1].wait(SECONDS)
        log = runs[-1].log.read_text()
        assert "Traceback" not in log
        return code, (log.strip().splitlines() or [""])[-1]

    yield run
    for process in runs:
        process.kill()


def test_everything_is_made_and_may_be_made_again(fleet: Fleet, setup: Setup) -> None:
    """Schemas, couriers, queues; a second run finds them."""
    fleet.empty_virtual_host()
    assert setup()[0] == 0
    assert fleet.count(Queue.PAYMENTS) == 0
    code, last = setup()
    assert (code, "topology_declared" in last) == (0, True)


def test_a_database_of_a_newer_release_is_refused_in_one_line(fleet: Fleet, setup: Setup) -> None:
    """By the command and by a process; neither touches it."""
    found = [row[0] for row in fleet.rows("orders", "SELECT version_num FROM alembic_version")]
    fleet.rows("orders", "UPDATE alembic_version SET version_num = '9999'")
    try:
        code, last = setup(ORDERS_DATABASE_URL=fleet.database_url("orders"))
        assert code == 1
        assert "ORDERS_DATABASE_URL: the database is at version 9999" in last
        node = fleet.node("recorder")
        node.container.start()
        assert node.container.process.wait(SECONDS) == 1
        assert "ORDERS_DATABASE_URL: the database is at version 9999" in node.logs().strip().splitlines()[-1]
        assert [row[0] for row in fleet.rows("orders", "SELECT version_num FROM alembic_version")] == ["9999"]
    finally:
        fleet.rows("orders", "UPDATE alembic_version SET version_num = :found", found=found[0])


def test_a_migration_that_fails_names_its_database(fleet: Fleet, setup: Setup) -> None:
    """As when it finds a table that is not there according to the version."""
    found = [row[0] for row in fleet.rows("payments", "SELECT version_num FROM alembic_version")]
    fleet.rows("payments", "UPDATE alembic_version SET version_num = '0001'")
    try:
        code, last = setup(PAYMENTS_DATABASE_URL=fleet.database_url("payments"))
    finally:
        fleet.rows("payments", "UPDATE alembic_version SET version_num = :found", found=found[0])
    assert code == 1
    assert "PAYMENTS_DATABASE_URL: the migration failed" in last


@pytest.mark.parametrize("couriers", ["deploy/no-such-file.json", "README.md"])
def test_wrong_couriers_are_named(setup: Setup, couriers: str) -> None:
    """One line with the file's name."""
    code, last = setup(couriers)
    assert (code, couriers in last) == (1, True)


def test_a_missing_broker_is_named(setup: Setup) -> None:
    """After START_TIMEOUT, as by every process."""
    code, last = setup(BROKER_URL="amqp://waybill:secret@127.0.0.1:1/waybill", START_TIMEOUT="1")
    assert (code, "BROKER_URL: cannot reach" in last, "secret" in last) == (1, True, False)


def test_processes_without_a_port_give_signs_of_life(fleet: Fleet) -> None:
    """The file is renewed while they work, and again after the broker was away."""
    names = ("payments", "recorder", "beat")
    with fleet.running(*names):
        files = [fleet.stack.folder / "alive" / name for name in names]
        for file in files:
            _renewed(file)
        fleet.rabbitmq.restart()
        for file in files:
            _renewed(file)


def _renewed(file: Path) -> None:
    eventually(file.exists, f"{file} is made")
    before = file.stat().st_mtime
    eventually(lambda: file.stat().st_mtime > before, f"{file} is renewed", SECONDS)
