"""Take no order that cannot be served: while the backlog is long, clients are asked to come back later."""

import threading
import time

from flask import Flask, current_app
from werkzeug.exceptions import ServiceUnavailable

from shared.settings import get_settings
from shared.telemetry.logs import get_logger
from workers.orders import operations

_FRESH = 1.0  # seconds that a count holds
_RETRY_AFTER = 10  # seconds

log = get_logger(__name__)


class Backlog:
    """The number of orders on their way, counted by one request a second and by nobody else meanwhile."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._full = False
        self._counted_at = float("-inf")
        self._lock = threading.Lock()

    def is_full(self) -> bool:
        """Say whether the backlog has reached its limit; raises ``Transient`` without the database."""
        first = self._counted_at == float("-inf")
        if time.monotonic() - self._counted_at >= _FRESH and self._lock.acquire(blocking=first):
            try:
                self._count()
            finally:
                self._lock.release()
        return self._full

    def _count(self) -> None:
        if time.monotonic() - self._counted_at < _FRESH:
            return
        full = operations.backlog(self._limit) >= self._limit
        if full != self._full:
            log.warning("admission_closed" if full else "admission_open", variable="ADMISSION_LIMIT", limit=self._limit)
        self._full, self._counted_at = full, time.monotonic()


def admit() -> None:
    """Let a new order in; raises 503 with a ``Retry-After`` while the backlog is too long."""
    if current_app.extensions["backlog"].is_full():
        raise ServiceUnavailable(retry_after=_RETRY_AFTER)


def register(app: Flask) -> None:
    """Watch the backlog for ``app``."""
    app.extensions["backlog"] = Backlog(get_settings().admission_limit)
