"""The correlation id: taken from ``X-Correlation-ID`` or made here, bound to every log line, given back."""

import re
import uuid

from flask import Flask, Response, g, request
from structlog.contextvars import bind_contextvars, clear_contextvars

from shared import cards

HEADER = "X-Correlation-ID"
_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{1,64}")


def correlation_id() -> str:
    """Return the id of the request being served."""
    return str(g.correlation_id)


def register(app: Flask) -> None:
    """Serve the header on every request of ``app``."""

    @app.before_request
    def _enter() -> None:
        given = request.headers.get(HEADER, "")
        g.correlation_id = given if _may_be_logged(given) else str(uuid.uuid4())
        clear_contextvars()  # a server thread serves many requests
        bind_contextvars(correlation_id=g.correlation_id)

    @app.after_request
    def _leave(response: Response) -> Response:
        if "correlation_id" in g:
            response.headers[HEADER] = g.correlation_id
        return response


def _may_be_logged(given: str) -> bool:
    return bool(_ACCEPTED.fullmatch(given)) and not cards.looks_like_one(given)
