"""The provider's webhooks: signed as Standard Webhooks and sent in the background, a few times if need be."""

import base64
import json
import secrets
import sys
import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import urllib3
from standardwebhooks import Webhook

_THREADS = 4
_PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds between two attempts
_TIMEOUT = 5.0  # seconds for an answer


def new_secret() -> str:
    """Return a fresh secret for a sender and its receiver."""
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


def webhook_variables(api_url: str) -> dict[str, str]:
    """Return the variables by which provider and API share a fresh secret; the couriers' is a fresh one, too."""
    payments = new_secret()
    return {
        "PSP_WEBHOOK_URL": f"{api_url}/v1/webhooks/payments",
        "PSP_WEBHOOK_SECRET": payments,
        "PAYMENTS_WEBHOOK_SECRET": payments,
        "DELIVERY_WEBHOOK_SECRET": new_secret(),
    }


def signed(secrets_: Sequence[str], webhook_id: str, body: str, at: datetime | None = None) -> dict[str, str]:
    """Return the headers of a message, signed now or ``at`` another time, with each of the secrets."""
    time = at or datetime.now(UTC)
    return {
        "content-type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(time.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(webhook_id, time, body) for secret in secrets_),
    }


class Webhooks:
    """Sends messages until ``stopping`` is set; to nobody before ``send_to`` was called."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._url = ""
        self._secrets: Sequence[str] = ()
        self._http = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="webhooks")

    def send_to(self, url: str, secrets_: Sequence[str]) -> None:
        """Send from now on to ``url``."""
        self._url, self._secrets = url, secrets_

    def send(self, kind: str, data: dict[str, Any]) -> None:
        """Send a message in the background, if there is somebody to send it to."""
        if self._url and self._secrets:
            body = json.dumps({"type": kind, "timestamp": datetime.now(UTC).isoformat(), "data": data})
            self._pool.submit(self._try, f"msg_{uuid.uuid4().hex}", body)

    def close(self) -> None:
        """Give up what is not sent yet; call it after ``stopping`` was set."""
        self._pool.shutdown(cancel_futures=True)
        self._http.clear()

    def _try(self, webhook_id: str, body: str) -> None:
        """Send until it is taken: each attempt has a signature of its own time."""
        for pause in (*_PAUSES, 0.0):
            if self._attempt(webhook_id, body):
                return
            if self._stopping.wait(pause):
                return
        sys.stderr.write(f"psp: webhook {webhook_id} was not taken by {self._url}\n")

    def _attempt(self, webhook_id: str, body: str) -> bool:
        headers = signed(self._secrets, webhook_id, body)
        try:
            answer = self._http.request("POST", self._url, body=body, headers=headers)
        except urllib3.exceptions.HTTPError:
            return False
        return HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES
