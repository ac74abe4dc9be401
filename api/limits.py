"""How often a caller may ask: one bucket for each caller and kind of request, shared by all processes through Redis.

Without Redis each process counts for itself. Flask-Limiter decides; the headers are ours, because its own give the
reset as a date and put a ``Retry-After`` on every answer.
"""

import contextlib
import math
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, TypeVar

import redis
from flask import Flask, Response, current_app, g, request
from flask_limiter import Limiter
from flask_smorest import Blueprint
from limits.errors import StorageError
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.tokens import Caller
from shared.settings import MEMORY, get_settings

Kind = Literal["create", "list", "detail"]
_FAILURES = "60/minute"  # failed authentications from one address
_TIMEOUT = 0.25  # seconds, what a lost Redis may cost a request, for connecting and for each answer

View = TypeVar("View", bound=Callable[..., Any])


def limited(kind: Kind) -> Callable[[View], View]:
    """Let a caller call views of this kind so often as their token or the settings say; goes below ``requires``."""

    def decorator(view: View) -> View:
        @wraps(view)
        def counted(*args: Any, **kwargs: Any) -> Any:
            caller: Caller = g.caller
            allowed = caller.limits.get(kind) or getattr(get_settings(), f"rate_limit_{kind}")
            _count(f"caller:{caller.subject}", kind, allowed)
            return view(*args, **kwargs)

        return Blueprint.doc(responses={"429": "TOO_MANY_REQUESTS"})(counted)  # type: ignore[no-any-return]

    return decorator


def count_failure() -> None:
    """Count a failed authentication against the address it comes from; raises 429 when there were too many.

    A good token is never counted here: who shares an address with an attacker is not locked out.
    """
    _count(f"address:{request.remote_addr}", "failures", _FAILURES)


def register(app: Flask) -> None:
    """Count in ``app``."""
    limiter = Limiter(
        lambda: str(g.bucket[0]),
        strategy="moving-window",
        key_prefix="waybill",
        in_memory_fallback_enabled=True,
        headers_enabled=False,
        **_storage(get_settings().redis_url),
    )
    limiter.init_app(app)
    # No rate unless `_count` asks: Flask-Limiter looks at the start of each request, too
    rate = limiter.shared_limit(lambda: str(g.bucket[2]) if "bucket" in g else "", scope=lambda _: str(g.bucket[1]))
    app.extensions["hit"] = rate(_passed)

    @app.after_request
    def _tell(response: Response) -> Response:
        if limit := limiter.current_limit:
            try:
                reset, remaining = limit.window
            except StorageError:
                return response  # lost just now; the next request counts without it
            seconds = max(1, math.ceil(reset - time.time()))
            response.headers["RateLimit-Limit"] = str(limit.limit.amount)
            response.headers["RateLimit-Remaining"] = str(remaining)
            response.headers["RateLimit-Reset"] = str(seconds)
            if limit.breached:
                response.headers["Retry-After"] = str(seconds)
        return response


def _count(who: str, kind: str, allowed: str) -> None:
    g.bucket = (who, kind, allowed)
    hit = current_app.extensions["hit"]
    try:
        hit()
    except StorageError:
        # Of the requests that find Redis gone at once, Flask-Limiter falls back for the first and raises for the rest;
        # by now it has fallen back. Should Redis come and go meanwhile, an uncounted request is better than a 500.
        with contextlib.suppress(StorageError):
            hit()


def _passed() -> None:
    """Stand in for a view: Flask-Limiter decorates functions."""


def _storage(url: str) -> dict[str, Any]:
    if url.startswith(MEMORY):
        return {"storage_uri": MEMORY}
    # no retry: the default one waits, for seconds
    pool = redis.ConnectionPool.from_url(
        url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT, retry=Retry(NoBackoff(), 0)
    )
    return {"storage_uri": "redis://", "storage_options": {"connection_pool": pool, "wrap_exceptions": True}}
