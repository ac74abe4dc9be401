"""What a client is told about an order: where it stands as an HTTP status and a body."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from flask import json, url_for
from flask.wrappers import Response
from marshmallow import Schema

from api.errors import MEDIA_TYPE, problem_body
from shared.contracts.saga import Status
from workers.orders.idempotency import Answer
from workers.orders.operations import Order
from workers.orders.status import PARKED

_RETRY_AFTER = 30  # seconds; what is parked waits for an operator or a provider
#: By failure code; every other one is an order that cannot be fulfilled as it is.
_FAILURES = {"PAYMENT_FAILED": HTTPStatus.PAYMENT_REQUIRED}


@dataclass(frozen=True, slots=True)
class View:
    """How orders are shown: by which schema, and at which endpoint one is found."""

    schema: Schema
    endpoint: str

    def location(self, order_id: str) -> str:
        """Return where an order is found."""
        return url_for(self.endpoint, order_id=order_id)

    def accepted(self, order: Order) -> Answer:
        """Return the answer while the order is on its way."""
        return Answer(HTTPStatus.ACCEPTED, self.schema.dump(order))

    def outcome(self, order: Order) -> Answer:
        """Return the answer to who waited: what became of the order, or 202 while nothing has."""
        if order.failure:
            return self._refused(order, _FAILURES.get(order.failure, HTTPStatus.UNPROCESSABLE_ENTITY), order.failure)
        if order.status in PARKED:
            return self._refused(order, HTTPStatus.SERVICE_UNAVAILABLE, "UPSTREAM_UNAVAILABLE")
        if order.status == Status.COMPLETED:
            return Answer(HTTPStatus.CREATED, self.schema.dump(order))
        return self.accepted(order)

    def _refused(self, order: Order, status: HTTPStatus, code: str) -> Answer:
        return Answer(status, problem_body(status, code, order=self.schema.dump(order)))

    def respond(self, answer: Answer, order_id: str, headers: Mapping[str, str]) -> Response:
        """Return an answer over HTTP, with the order's ``Location``."""
        refused = answer.status >= HTTPStatus.BAD_REQUEST
        response = Response(json.dumps(answer.body), answer.status, headers)
        response.content_type = MEDIA_TYPE if refused else "application/json"
        response.headers["Location"] = self.location(order_id)
        if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
            response.headers["Retry-After"] = str(_RETRY_AFTER)
        return response


def has_outcome(order: Order) -> bool:
    """Say whether there is something to tell who waits."""
    return bool(order.failure) or order.status in PARKED or order.status == Status.COMPLETED


def is_final(answer: Answer) -> bool:
    """Say whether an outcome stays: what is parked or on its way may still become something else."""
    return answer.status not in (HTTPStatus.ACCEPTED, HTTPStatus.SERVICE_UNAVAILABLE)
