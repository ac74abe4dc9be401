"""The process's Redis client. Redis is only the fast path: without it everything works, slower.

Whoever uses it answers a ``redis.RedisError`` as if Redis knew nothing.
"""

import threading
import time
from functools import cache
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.settings import MEMORY, get_settings
from shared.telemetry.logs import get_logger
from shared.telemetry.metrics import record_redis_unavailable

_ASK_AGAIN = 1.0  # seconds that a lost Redis is left alone
_TIMEOUT = 1.0  # seconds, for connecting and for each answer

log = get_logger(__name__)


class FailFastRedis(redis.Redis):
    """A client that does not wait for a lost Redis at every command, and warns once for each outage."""

    _lock = threading.Lock()
    _down = False
    _down_until = _up_since = 0.0

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command, or raise at once while Redis is known to be away."""
        started = time.monotonic()
        if started < self._down_until:
            raise redis.ConnectionError("Redis was unreachable a moment ago")
        try:
            answer = super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._lost(started, error)
            raise
        if self._down:
            self._found()
        return answer

    def _lost(self, started: float, error: Exception) -> None:
        record_redis_unavailable()
        with self._lock:
            if started < self._up_since:  # a command of the last outage that came back late
                return
            if not self._down:
                log.warning("redis_unavailable", variable="REDIS_URL", error=str(error), effect="slower")
            self._down, self._down_until = True, time.monotonic() + _ASK_AGAIN

    def _found(self) -> None:
        with self._lock:
            if self._down:
                log.info("redis_available")
            self._down, self._down_until, self._up_since = False, 0.0, time.monotonic()


def connect(url: str) -> redis.Redis:
    """Return a client, in-process for ``memory://``. Nothing connects until the first command."""
    if url.startswith(MEMORY):
        import fakeredis  # noqa: PLC0415 - only the embedded stack has it installed

        return fakeredis.FakeRedis()
    return FailFastRedis.from_url(
        url,
        socket_timeout=_TIMEOUT,
        socket_connect_timeout=_TIMEOUT,
        # once, at once: for a pooled connection that an outage left behind; the default waits, for seconds
        retry=Retry(NoBackoff(), 1),
    )


@cache
def redis_client() -> redis.Redis:
    """Return this process's client."""
    return connect(get_settings().redis_url)
