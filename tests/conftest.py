"""What every kind of test may use: hypothesis's profile, and a house of one's own in a temporary folder."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from structlog.contextvars import clear_contextvars

from shared import database, dedup, migrations, redis_client, settings
from shared.messaging import memory, topology
from shared.settings import SERVICES, Settings
from workers.notifications.channels import channel
from workers.payments.gateways import payment_gateway

hypothesis_settings.register_profile(
    "house",
    deadline=None,  # a slow machine is no failure
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
hypothesis_settings.load_profile("house")

UNLIMITED = "100000/second"
UseSettings = Callable[..., Settings]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: of two that share the tests neither waits for the other at the end."""
    items.sort(key=lambda item: item.path.name != "test_chaos.py")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every service's database, migrated and empty; copied, not used."""
    folder = tmp_path_factory.mktemp("migrated")
    _forget()
    settings.use(Settings(var_dir=folder))
    for service in SERVICES:
        migrations.upgrade(service)
    _forget()
    return folder


@pytest.fixture
def house(tmp_path: Path, migrated: Path) -> Iterator[UseSettings]:
    """Settings, databases, memory broker and Redis of this test alone; call it to change some settings."""
    folder = tmp_path / "var"
    shutil.copytree(migrated, folder)
    _forget()

    def use(**changes: Any) -> Settings:
        settings.use(replace(settings.get_settings(), **changes))
        return settings.get_settings()

    settings.use(
        Settings(
            var_dir=folder,
            payment_gateway="memory",
            log_format="json",
            auth_disabled=True,
            rate_limit_create=UNLIMITED,
            rate_limit_list=UNLIMITED,
            rate_limit_detail=UNLIMITED,
        )
    )
    yield use
    _forget()


def _forget() -> None:
    """Drop whatever a process keeps for its lifetime."""
    database.forget_connections()
    memory.reset()
    redis_client.connect(settings.MEMORY).flushall()
    for cached in (
        topology.events_queue,
        redis_client.redis_client,
        dedup.step_leases,
        payment_gateway,
        channel,
        settings._from_environment,
    ):
        cached.cache_clear()
    settings._chosen.clear()
    clear_contextvars()
