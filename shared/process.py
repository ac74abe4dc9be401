"""How every process starts: logs, error reports, and a look at what it needs before it serves.

What is not reachable yet is waited for with one line that names the variable; what stays unreachable ends the
process with that line and exit code 1.
"""

import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NoReturn

import redis
from kombu import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError as DatabaseError

from shared import migrations
from shared.errors import ConfigurationError, WaybillError
from shared.messaging import memory
from shared.messaging.broker import BROKER_ERRORS
from shared.messaging.topology import TRANSPORT_OPTIONS
from shared.redis_client import connect
from shared.settings import MEMORY, Settings, get_settings
from shared.telemetry.errors import configure_error_reports
from shared.telemetry.logs import configure_logging, get_logger
from shared.telemetry.metrics import configure_metrics

_EVERY = 2.0  # seconds between two looks
_CONNECT_TIMEOUT = 2  # seconds

log = get_logger(__name__)


def start_process(name: str, *, databases: Iterable[str] = (), broker: bool = True) -> None:
    """Prepare this process, or end it with one line that says which variable to correct.

    A broker that is not ``broker`` (needed) and Redis are only warned about: the process works without them.
    """
    settings = settings_or_exit(name)
    try:
        configure_logging(settings, name)
        configure_error_reports(settings, name)
        configure_metrics(settings, name)
        for service in databases:
            variable = f"{service.upper()}_DATABASE_URL"
            wait_until(partial(_database, service), variable, settings.database_url(service))
        if broker:
            wait_until(broker_problem, "BROKER_URL", settings.broker_url)
        else:
            _warn(broker_problem, "BROKER_URL", settings.broker_url, "orders are stored and driven once it is back")
        _warn(redis_problem, "REDIS_URL", settings.redis_url, "deduplicating by the databases alone until it is back")
    except WaybillError as error:
        _exit(name, error)


def settings_or_exit(name: str) -> Settings:
    """Return the settings; end the process with one line that names the variable that is wrong."""
    try:
        return get_settings()
    except ConfigurationError as error:
        _exit(name, error)


def _exit(name: str, error: WaybillError) -> NoReturn:
    sys.stderr.write(f"{name}: {error}\n")
    raise SystemExit(1) from None


def wait_until(look: Callable[[], str | None], variable: str, url: str) -> None:
    """Look until there is no problem; after ``START_TIMEOUT`` raise ``ConfigurationError`` with the variable's name."""
    deadline = time.monotonic() + get_settings().start_timeout
    while problem := look():
        if time.monotonic() >= deadline:
            raise ConfigurationError(f"{variable}: cannot reach {_masked(url)}: {problem}. Start it or correct it.")
        log.warning("waiting", variable=variable, url=_masked(url), error=problem, retry_in=_EVERY)
        time.sleep(_EVERY)


def _warn(look: Callable[[], str | None], variable: str, url: str, effect: str) -> None:
    if problem := look():
        log.warning("unreachable", variable=variable, url=_masked(url), error=problem, effect=effect)


def _database(service: str) -> str | None:
    try:
        migrations.check_version(service)
    except DatabaseError as error:
        return _first_line(error.orig or error)
    return None


def broker_problem() -> str | None:
    """Return why the broker cannot be reached, None if it can."""
    settings = get_settings()
    memory.register()
    options = TRANSPORT_OPTIONS[settings.embedded]
    try:
        with Connection(settings.broker_url, connect_timeout=_CONNECT_TIMEOUT, transport_options=options) as connection:
            connection.ensure_connection(max_retries=1, timeout=_CONNECT_TIMEOUT)
    except BROKER_ERRORS as error:
        return _first_line(error)
    return None


def redis_problem() -> str | None:
    """Return why Redis cannot be reached, None if it can."""
    url = get_settings().redis_url
    if url.startswith(MEMORY):
        return None
    try:
        with connect(url) as client:
            client.ping()
    except redis.RedisError as error:
        return _first_line(error)
    return None


def _masked(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
