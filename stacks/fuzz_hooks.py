"""What ``make fuzz`` adds to schemathesis: it signs webhooks, so that more of them is looked at than the signature."""

import json
import os
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import schemathesis

from simulators.webhooks import signed

SECRET = "FUZZ_WEBHOOK_SECRET"  # noqa: S105 - the variable's name
_PATH = "/v1/webhooks/"
_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")


@schemathesis.hook
def before_call(_context: Any, _case: Any, kwargs: dict[str, Any]) -> None:
    """Have the request signed when it is ready to be sent."""
    kwargs["auth"] = _sign


def _sign(request: Any) -> Any:
    """Sign a webhook, unless a header is missing: it is to be refused for that."""
    if urlsplit(request.url).path.startswith(_PATH) and all(name in request.headers for name in _HEADERS):
        body = _of_today(request.body)
        headers = signed([os.environ[SECRET]], f"msg_{uuid.uuid4().hex}", body)
        request.prepare_body(body.encode(), None)
        request.headers.update({name: headers[name] for name in _HEADERS})
    return request


def _of_today(body: Any) -> str:
    """Give a message a time of today, in place of another one: no schema can say "of the last 30 days"."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        message = json.loads(text)
        datetime.fromisoformat(message["timestamp"])
        return json.dumps({**message, "timestamp": datetime.now(UTC).isoformat()})
    return text
