"""Where a notification goes: the shop's own messaging system over HTTP, or the log when there is none."""

from functools import cache
from http import HTTPStatus
from typing import Any, Protocol

import urllib3

from shared.breaker import Breaker
from shared.errors import Transient
from shared.settings import get_settings
from shared.telemetry.logs import get_logger

log = get_logger(__name__)


class Channel(Protocol):
    """Takes a message for a customer; the same key may arrive twice and must be told apart there."""

    def send(self, key: str, message: dict[str, Any]) -> None:
        """Hand the message over; raise ``Transient`` when it is not known to have been taken."""


class LogChannel:
    """Writes the message's kind to the log: what a developer wants to see."""

    def send(self, key: str, message: dict[str, Any]) -> None:
        """Log it, by ids."""
        log.info("notification", key=key, kind=message["kind"])


class WebhookChannel:
    """Posts the message as JSON with an ``Idempotency-Key`` to ``NOTIFICATION_URL``. ``timeout`` is seconds."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(timeout), retries=False)
        self._breaker = Breaker("notifications")

    def send(self, key: str, message: dict[str, Any]) -> None:
        """Post it."""
        with self._breaker.guard():
            self._post(key, message)

    def _post(self, key: str, message: dict[str, Any]) -> None:
        try:
            response = self._http.request("POST", self._url, headers={"Idempotency-Key": key}, json=message)
        except urllib3.exceptions.HTTPError as error:
            raise Transient(f"notification webhook: {type(error).__name__}") from error
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR or response.status == HTTPStatus.TOO_MANY_REQUESTS:
            raise Transient(f"notification webhook: HTTP {response.status}")
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise RuntimeError(f"notification webhook refused the message: HTTP {response.status}")


@cache
def channel() -> Channel:
    """Return the channel that the settings name."""
    settings = get_settings()
    if settings.notification_url:
        return WebhookChannel(settings.notification_url, settings.gateway_timeout)
    return LogChannel()
