"""The migrations: on both databases they end at the models' schema, and two at once do no harm."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import inspect

from shared import migrations
from shared.database import get_database
from shared.settings import SERVICES, Settings
from stacks.local import ROOT, LocalStack
from stacks.processes import LocalProcess
from tests.integration.nodes import using

_numbers = itertools.count(1)
both = pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
each_service = pytest.mark.parametrize("service", SERVICES)


@pytest.fixture
def url(servers: LocalStack, kind: str, tmp_path: Path) -> str:
    """An empty database of the kind."""
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    name = f"migrated{next(_numbers)}"
    return servers.postgres.create_databases([name])[name]


@pytest.fixture
def config(service: str, url: str) -> Iterator[Config]:
    """Alembic's view of the service, its database being the empty one."""
    with using(Settings(databases={service: url})):
        yield Config(str(ROOT / "alembic.ini"), ini_section=service)


@both
@each_service
def test_an_upgrade_yields_the_schema_of_the_models(config: Config, service: str) -> None:
    """After `upgrade head`, autogenerate finds nothing to add."""
    migrations.upgrade(service)
    command.check(config)
    migrations.check_version(service)


@both
@each_service
def test_a_downgrade_leaves_nothing_and_can_be_upgraded(config: Config, service: str) -> None:
    """Down to the beginning takes every table away, and the way up works again."""
    migrations.upgrade(service)
    command.downgrade(config, "base")
    left = inspect(get_database(service).engine).get_table_names()
    assert left == ["alembic_version"]
    migrations.upgrade(service)
    command.check(config)


@both
@pytest.mark.parametrize("service", ["orders"])
def test_two_upgrades_at_once_are_safe(config: Config, service: str, url: str, tmp_path: Path) -> None:
    """Two deployments start at once: both succeed, and the schema is there once."""
    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(lambda n: _upgrade(service, url, tmp_path / f"log{n}"), range(2)))
    assert codes == [0, 0], "\n".join((tmp_path / f"log{n}").read_text() for n in range(2))
    command.check(config)


def _upgrade(service: str, url: str, log: Path) -> int | None:
    environment = {**os.environ, f"{service.upper()}_DATABASE_URL": url}
    upgrade = [sys.executable, "-m", "alembic", "-n", service, "upgrade", "head"]
    process = LocalProcess("alembic", upgrade, log=log, environment=environment, cwd=ROOT, tied=True)
    process.start()
    try:
        return process.wait(60)
    finally:
        process.kill()
