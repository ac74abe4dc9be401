"""Sentry, when ``SENTRY_DSN`` is set: where it failed and for which order, without bodies or personal data."""

from typing import Any

import sentry_sdk
import structlog
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.integrations.logging import LoggingIntegration

from shared.settings import Settings

_MAX_TEXT = 200


def configure_error_reports(settings: Settings, process: str, **options: Any) -> None:
    """Start Sentry in this process; does nothing without ``SENTRY_DSN``."""
    if not settings.sentry_dsn:
        return
    sentry_sdk.init(
        dsn=settings.sentry_dsn,
        environment=settings.environment,
        server_name=process,
        max_request_body_size="never",
        include_local_variables=False,  # a frame's locals hold waybills
        before_send=_scrub,
        before_breadcrumb=lambda _crumb, _hint: None,  # SQL and HTTP breadcrumbs carry values
        integrations=[CeleryIntegration(), LoggingIntegration(event_level=None)],
        **options,
    )


def report_error(error: BaseException) -> None:
    """Report what is a bug; a business no, a retry and a provider's outage are none."""
    sentry_sdk.capture_exception(error)


def _scrub(event: Any, _hint: Any) -> Any:
    """Leave the ids of the order, take out what a library may have copied from a message or a request."""
    event.pop("extra", None)
    request = event.get("request", {})
    for part in ("data", "cookies", "headers", "query_string", "env"):
        request.pop(part, None)
    ids = structlog.contextvars.get_contextvars()
    event.setdefault("tags", {}).update({key: ids[key] for key in ("order_id", "correlation_id", "task") if key in ids})
    for exception in event.get("exception", {}).get("values", []):
        # the text of a database or schema error can quote the row or the body it failed on
        exception["value"] = exception.get("value", "").partition("\n")[0][:_MAX_TEXT]
    return event
