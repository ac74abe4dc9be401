"""A circuit breaker for each outside provider, shared by every worker through Redis.

After ``FAILURES`` failures in a row nobody calls the provider for ``REST`` seconds; then one call, the canary, tries,
and its outcome decides for all. While Redis is away the breaker lets every call through.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import redis
from pybreaker import STATE_CLOSED, CircuitBreaker, CircuitBreakerError, CircuitRedisStorage

from shared.errors import Transient, Waiting
from shared.redis_client import redis_client

FAILURES = 10
REST = 5  # seconds
_CANARY_TIMEOUT = 15  # seconds after which a canary that never came back is given up
_NAMESPACE = "waybill:breaker"

logging.getLogger("pybreaker").setLevel(logging.CRITICAL)  # it logs a traceback for each command without Redis


class _Storage(CircuitRedisStorage):
    def _initialize_redis_state(self, state: str) -> None:
        with suppress(redis.RedisError):
            super()._initialize_redis_state(state)


class Breaker:
    """The breaker of one provider. Only ``Transient`` counts as a failure of it."""

    def __init__(self, provider: str) -> None:
        namespace = f"{_NAMESPACE}:{provider}"
        self._canary = f"{namespace}:canary"
        self._breaker = CircuitBreaker(
            fail_max=FAILURES,
            reset_timeout=REST,
            state_storage=_Storage(STATE_CLOSED, redis_client(), namespace),
            exclude=[lambda error: not isinstance(error, Transient)],
            throw_new_error_on_trip=False,
            name=provider,
        )

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Let the block call the provider; raise ``Waiting``, which uses up no attempt, while the breaker is open."""
        closed = self._breaker.current_state == STATE_CLOSED
        if not closed and not self._take_canary():
            self._wait()
        try:
            with self._breaker.calling():
                yield
        except CircuitBreakerError:
            self._wait()
        finally:
            if not closed:
                self._free_canary()

    def _wait(self) -> NoReturn:
        # spread out, so that the canary is not followed by a stampede
        raise Waiting(f"{self._breaker.name}: circuit breaker open", REST * random.uniform(1, 2))  # noqa: S311

    def _take_canary(self) -> bool:
        with suppress(redis.RedisError):
            return bool(redis_client().set(self._canary, 1, nx=True, ex=_CANARY_TIMEOUT))
        return True

    def _free_canary(self) -> None:
        with suppress(redis.RedisError):
            redis_client().delete(self._canary)
