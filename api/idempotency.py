"""The ``Idempotency-Key`` of a request, and the answer to a repetition of it.

A success is answered again with 200 whatever it was at first, since nothing was created now; a refusal is repeated.
"""

import hashlib
import json
import re
from http import HTTPStatus
from typing import Any

from flask import request
from flask_smorest import abort

from api.auth import caller
from workers.orders.idempotency import Answer, RequestKey

HEADER = "Idempotency-Key"
REPLAY_HEADER = "Idempotent-Replay"
_ACCEPTED = re.compile(r"[\x21-\x7e]{1,255}")


def request_key(details: Any = None, busy_for: float = 0) -> RequestKey | None:
    """Return the key of the request being served, None without the header; 400 for one that is no key.

    ``details`` are what is asked, parsed: two spellings of the same JSON are the same request. ``busy_for`` is how
    many seconds it may take until it is answered.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not _ACCEPTED.fullmatch(key):
        abort(HTTPStatus.BAD_REQUEST, messages={HEADER: ["Must be 1 to 255 visible ASCII characters."]})
    asked = json.dumps([request.method, request.path, details], sort_keys=True, separators=(",", ":"))
    return RequestKey(caller().subject, key, hashlib.sha256(asked.encode()).hexdigest(), busy_for)


def repeated(answer: Answer) -> Answer:
    """Return the answer to a repetition."""
    return Answer(HTTPStatus.OK, answer.body) if answer.status < HTTPStatus.BAD_REQUEST else answer
