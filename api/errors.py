"""Errors as RFC 9457 problem documents: ``detail`` carries the code, a 400 names each field that is wrong."""

import math
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, json, request
from werkzeug.exceptions import HTTPException

from shared import cards
from shared.errors import Transient
from shared.telemetry.errors import report_error
from shared.telemetry.logs import get_logger
from workers.orders.idempotency import InProgressError, KeyConflictError

MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER = 2  # seconds
_CODES = {HTTPStatus.BAD_REQUEST: "VALIDATION_FAILED", HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "BODY_TOO_LARGE"}

log = get_logger(__name__)


def problem_body(status: int, detail: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a problem document as data; ``detail`` defaults to the status's own code, ``more`` are its extensions."""
    known = HTTPStatus(status)
    return {
        "type": "about:blank",
        "title": known.phrase,
        "status": status,
        "detail": detail or _CODES.get(known) or known.name,
        "instance": cards.masked(request.path),
        **more,
    }


def problem(status: int, detail: str | None = None, **more: Any) -> Response:
    """Return a problem document as an answer."""
    return Response(json.dumps(problem_body(status, detail, **more)), status=status, content_type=MEDIA_TYPE)


def unavailable(detail: str = "UPSTREAM_UNAVAILABLE", retry_after: float = _RETRY_AFTER) -> Response:
    """Return a 503 that says in how many seconds to try again."""
    return _later(problem(HTTPStatus.SERVICE_UNAVAILABLE, detail), retry_after)


def _later(response: Response, seconds: float) -> Response:
    response.headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    return response


def register(app: Flask) -> None:
    """Answer every error of ``app`` with a problem document."""

    @app.errorhandler(HTTPException)
    def _refused(error: HTTPException) -> Response:
        status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
        messages = getattr(error, "data", {}).get("messages", {})
        said = messages.get("json", messages.get("query", messages))
        errors = [{"field": cards.masked(field), "message": text} for field, text in _fields(said)]
        more: dict[str, Any] = {"errors": errors} if errors else {}
        response = problem(status, **more)
        for name, value in error.get_headers():
            if name.lower() not in {"content-type", "content-length"}:
                response.headers[name] = value
        return response

    @app.errorhandler(Transient)
    def _unavailable(error: Transient) -> Response:
        log.warning("unavailable", error=str(error))
        return unavailable()

    @app.errorhandler(KeyConflictError)
    def _conflict(_error: KeyConflictError) -> Response:
        return problem(HTTPStatus.CONFLICT, "IDEMPOTENCY_CONFLICT")

    @app.errorhandler(InProgressError)
    def _in_progress(error: InProgressError) -> Response:
        return _later(problem(HTTPStatus.CONFLICT, "IDEMPOTENCY_IN_PROGRESS"), error.retry_after)

    @app.errorhandler(Exception)
    def _bug(error: Exception) -> Response:
        report_error(error)
        log.exception("request_failed", path=request.path)
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR)


def _fields(messages: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Flatten marshmallow's nested messages to ``("items.0.quantity", "Must be …")`` pairs."""
    if isinstance(messages, dict):
        for key, nested in messages.items():
            yield from _fields(nested, path if key == "_schema" else f"{path}.{key}".lstrip("."))
        return
    for text in messages if isinstance(messages, list) else [messages]:
        yield path or "body", str(text)
