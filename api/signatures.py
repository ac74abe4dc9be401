"""Standard Webhooks: nothing of a message is looked at before its signature is verified."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from flask import request
from flask_smorest import abort
from standardwebhooks import Webhook, WebhookVerificationError

_ID = re.compile(r"[!-~]{1,255}")


@dataclass(frozen=True, slots=True)
class Message:
    """A message that its sender signed at ``signed_at``; its body is not parsed yet."""

    id: str
    signed_at: datetime
    body: bytes


def verified(secrets: Sequence[str]) -> Message:
    """Return the request's message if one of the secrets signed it within five minutes.

    Aborts with 404 without a secret and with 401 for whatever is wrong with the signature or its time.
    """
    if not secrets:
        abort(HTTPStatus.NOT_FOUND)
    body, headers = request.get_data(cache=False), dict(request.headers)
    if not any(_signed(Webhook(secret), body, headers) for secret in secrets):
        abort(HTTPStatus.UNAUTHORIZED)
    webhook_id = request.headers["webhook-id"]
    if not _ID.fullmatch(webhook_id):
        abort(HTTPStatus.BAD_REQUEST, messages={"webhook-id": ["Must be 1 to 255 printable ASCII characters."]})
    # the signature covers whole seconds: a copy with other digits behind the point is the same message
    signed_at = datetime.fromtimestamp(int(float(request.headers["webhook-timestamp"])), UTC)
    return Message(webhook_id, signed_at, body)


def _signed(webhook: Webhook, body: bytes, headers: dict[str, str]) -> bool:
    try:
        webhook.verify(body, headers, json_parse=False)
    except (WebhookVerificationError, ValueError):  # the latter for a header or a body that does not even decode
        return False
    return True
