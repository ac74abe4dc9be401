"""Errors as RFC 9457 problem documents: ``detail`` carries the code, a 400 names each field that is wrong."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, json, request
from werkzeug.exceptions import HTTPException

from shared.errors import Transient
from shared.telemetry.errors import report_error
from shared.telemetry.logs import get_logger

MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER = 2  # seconds
_CODES = {HTTPStatus.BAD_REQUEST: "VALIDATION_FAILED", HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "BODY_TOO_LARGE"}

log = get_logger(__name__)


def problem(status: int, detail: str | None = None, errors: list[dict[str, str]] | None = None) -> Response:
    """Return a problem document; ``detail`` defaults to the status's own code."""
    known = HTTPStatus(status)
    body = {
        "type": "about:blank",
        "title": known.phrase,
        "status": status,
        "detail": detail or _CODES.get(known) or known.name,
        "instance": request.path,
        **({"errors": errors} if errors else {}),
    }
    return Response(json.dumps(body), status=status, content_type=MEDIA_TYPE)


def register(app: Flask) -> None:
    """Answer every error of ``app`` with a problem document."""

    @app.errorhandler(HTTPException)
    def _refused(error: HTTPException) -> Response:
        status = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
        messages = getattr(error, "data", {}).get("messages", {})
        errors = [{"field": field, "message": text} for field, text in _fields(messages.get("json", messages))]
        response = problem(status, errors=errors)
        for name, value in error.get_headers():
            if name.lower() not in {"content-type", "content-length"}:
                response.headers[name] = value
        return response

    @app.errorhandler(Transient)
    def _unavailable(error: Transient) -> Response:
        log.warning("unavailable", error=str(error))
        response = problem(HTTPStatus.SERVICE_UNAVAILABLE, "UPSTREAM_UNAVAILABLE")
        response.headers["Retry-After"] = str(_RETRY_AFTER)
        return response

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
