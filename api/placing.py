"""Place and cancel orders for a request: once for each key, waiting for the outcome where that is preferred."""

from typing import Any

from flask import current_app, request
from flask.wrappers import Response

from api import outcomes
from api.admission import admit
from api.auth import caller
from api.correlation import correlation_id
from api.dispatcher import dispatcher
from api.idempotency import REPLAY_HEADER, repeated, request_key
from api.outcomes import View
from api.waiting import Waiting, preferred_wait
from shared.errors import Transient
from shared.telemetry.logs import get_logger
from workers.orders import idempotency, operations
from workers.orders.idempotency import Answer, RepeatedError, RequestKey
from workers.orders.operations import Order

_MARGIN = 5  # seconds, from the end of a wait until its answer is stored

log = get_logger(__name__)


def place(details: dict[str, Any], asked: Any, view: View, default_wait: int = 0) -> Response:
    """Place an order with ``details``; ``asked`` is what the client said, parsed. Waits ``default_wait`` seconds."""
    preferred = preferred_wait(request.headers.get("Prefer", ""))
    wait = default_wait if preferred is None else preferred
    key = request_key(asked, busy_for=wait and wait + _MARGIN)
    admit()
    headers: dict[str, str] = {}
    try:
        order, way = operations.place(
            details,
            correlation_id(),
            owner=caller().subject,
            request=key,
            answer=None if wait else view.accepted,
        )
    except RepeatedError as earlier:
        headers[REPLAY_HEADER] = "true"
        if earlier.answer:
            return view.respond(repeated(earlier.answer), earlier.order_id, headers)
        order = _order(earlier.order_id)
    else:
        log.info("order_placed", order_id=order.id)
        dispatcher().send(way)
    answer, waited = _outcome(order, view, wait, key)
    if preferred is not None and (waited or not wait):
        headers["Preference-Applied"] = f"wait={wait}" if wait else "respond-async"
    return view.respond(repeated(answer) if REPLAY_HEADER in headers else answer, order.id, headers)


def cancel(order_id: str, owner: str | None, view: View) -> Response | None:
    """Cancel an order of ``owner`` at any moment; None when there is none."""
    key = request_key()
    try:
        cancelled = operations.cancel(order_id, owner=owner, request=key, answer=view.accepted)
    except RepeatedError as earlier:
        answer = earlier.answer or view.accepted(_order(earlier.order_id))
        return view.respond(repeated(answer), earlier.order_id, {REPLAY_HEADER: "true"})
    if cancelled is None:
        return None
    order, way_back = cancelled
    log.info("order_cancel_requested", order_id=order.id)
    dispatcher().send(way_back)
    return view.respond(view.accepted(order), order.id, {})


def _outcome(order: Order, view: View, wait: int, key: RequestKey | None) -> tuple[Answer, bool]:
    """Wait as long as is wanted; return the answer, and whether there was room to wait."""
    if not wait:
        return view.accepted(order), False
    waiting: Waiting = current_app.extensions["waiting"]
    order, waited = waiting.wait(order, wait)
    answer = view.outcome(order)
    if key:
        try:
            idempotency.record_answer(key, answer if outcomes.is_final(answer) else None)
        except Transient as error:
            log.warning("answer_not_stored", error=str(error), effect="a repetition is answered from the order")
    return answer, waited


def _order(order_id: str) -> Order:
    order = operations.find(order_id)
    assert order is not None  # noqa: S101 - a key is only ever stored together with its order
    return order
