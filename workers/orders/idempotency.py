"""A request that is repeated under its Idempotency-Key happens once and is answered again.

The key is claimed in the very transaction that does what is asked, so there is no moment at which one is done and the
other is not. A request that waits for its order's outcome is answered later; until then a repetition is told so.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from shared.database import delete_before, get_database, insert_if_new
from shared.errors import WaybillError
from workers.orders.models import IdempotencyKey


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered: an HTTP status and the body."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Whose key it is, a fingerprint of what is asked, and for how many seconds the answer may be under way."""

    caller: str
    key: str
    fingerprint: str
    busy_for: float = 0


class KeyConflictError(WaybillError):
    """The key was used for another request."""


class InProgressError(WaybillError):
    """The first request with the key is not answered yet; ``retry_after`` is in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("the first request with this key is still being worked on")
        self.retry_after = retry_after


class RepeatedError(WaybillError):
    """The request was made before: nothing was done now. Without an ``answer`` the order says what became of it."""

    def __init__(self, order_id: str, answer: Answer | None) -> None:
        super().__init__("the request was made before")
        self.order_id = order_id
        self.answer = answer


def claim(session: Session, request: RequestKey, order_id: str, answer: Answer | None) -> None:
    """Take the key within the transaction that serves the request, with its answer if that is known already.

    Raises ``RepeatedError``, ``KeyConflictError`` or ``InProgressError``, each of which rolls that transaction back.
    """
    now = datetime.now(UTC)
    row = {
        "caller": request.caller,
        "key": request.key,
        "fingerprint": request.fingerprint,
        "order_id": order_id,
        "status": answer and answer.status,
        "answer": answer and answer.body,
        "pending_until": now + timedelta(seconds=request.busy_for),
        "created_at": now,
    }
    if not insert_if_new(session, IdempotencyKey, row):  # another's insert under way is waited for
        _repeat(session.get_one(IdempotencyKey, (request.caller, request.key)), request, now)


def _repeat(known: IdempotencyKey, request: RequestKey, now: datetime) -> None:
    if known.fingerprint != request.fingerprint:
        raise KeyConflictError("the key was used for another request")
    if known.status is not None:
        raise RepeatedError(known.order_id, Answer(known.status, known.answer or {}))
    if known.pending_until > now:
        raise InProgressError((known.pending_until - now).total_seconds())
    raise RepeatedError(known.order_id, None)


def record_answer(request: RequestKey, answer: Answer | None) -> None:
    """Keep the answer of a request that waited; with None a repetition is answered from the order."""
    values = {"status": answer and answer.status, "answer": answer and answer.body, "pending_until": datetime.now(UTC)}
    mine = (IdempotencyKey.caller == request.caller) & (IdempotencyKey.key == request.key)
    with get_database("orders").transaction() as session:
        session.execute(update(IdempotencyKey).where(mine).values(**values))


def forget_keys(before: datetime, limit: int) -> int:
    """Delete at most ``limit`` keys that were claimed before a time; return how many."""
    with get_database("orders").transaction() as session:
        return delete_before(session, IdempotencyKey.created_at, before, limit)
