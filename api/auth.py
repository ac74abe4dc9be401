"""Who makes a request, and may they? A bearer token says so; see ``api.tokens``."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from flask import Flask, current_app, g, request
from flask_smorest import Api, Blueprint
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from api import limits
from api.tokens import ANONYMOUS, Caller, InvalidToken, is_loopback, tokens_from
from shared.settings import get_settings
from shared.telemetry.logs import get_logger

__all__ = ["Caller", "caller", "register", "requires"]

_SCHEME = "bearerAuth"
_REALM = "waybill"
#: Whoever comes through a proxy has the proxy's address, which may well be this machine's.
_PROXIED = ("Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via")

log = get_logger(__name__)
View = TypeVar("View", bound=Callable[..., Any])


class InsufficientScope(Unauthorized):
    """A 403 that names the scope that is missing; werkzeug's own carries no challenge."""

    code = 403


def caller() -> Caller:
    """Return who makes the request being served, in a view that ``requires`` a scope."""
    return g.caller  # type: ignore[no-any-return]


def register(app: Flask, api: Api) -> None:
    """Read tokens in ``app``; raises ``ConfigurationError`` without a key to check them by."""
    app.extensions["tokens"] = tokens_from(get_settings())
    if app.extensions["tokens"] is None:
        log.warning("authentication_disabled", variable="AUTH_DISABLED", effect="every local process may do everything")
    api.spec.components.security_scheme(_SCHEME, {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})


def requires(scope: str) -> Callable[[View], View]:
    """Let a view be called only with a token that has ``scope``; goes above every other decorator."""

    def decorator(view: View) -> View:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            g.caller = _authenticate()
            if scope not in g.caller.scopes:
                raise InsufficientScope(www_authenticate=_challenge(error="insufficient_scope", scope=scope))
            return view(*args, **kwargs)

        answers = {"401": "UNAUTHORIZED", "403": "FORBIDDEN"}
        return Blueprint.doc(security=[{_SCHEME: [scope]}], responses=answers)(guarded)  # type: ignore[no-any-return]

    return decorator


def _authenticate() -> Caller:
    tokens = current_app.extensions["tokens"]
    if tokens is None:
        return _somebody_local()
    given = request.authorization
    if given is None or given.type != "bearer" or not given.token:
        raise _unauthorized()
    try:
        return tokens.read(given.token)  # type: ignore[no-any-return]
    except InvalidToken as error:
        log.info("token_refused", reason=str(error))
        raise _unauthorized(error="invalid_token") from error


def _somebody_local() -> Caller:
    if any(name in request.headers for name in _PROXIED) or not is_loopback(request.remote_addr):
        raise Forbidden
    return ANONYMOUS


def _unauthorized(**parameters: str) -> Unauthorized:
    limits.count_failure()
    return Unauthorized(www_authenticate=_challenge(**parameters))


def _challenge(**parameters: str) -> WWWAuthenticate:
    """Say what is wanted, as RFC 6750 has it."""
    return WWWAuthenticate("bearer", {"realm": _REALM, **parameters})
