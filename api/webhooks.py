"""``/v1/webhooks``: what the payment provider and the couriers tell us, signed as Standard Webhooks.

A payment's webhook is a hint to read the provider's ledger, which is the truth; a courier's is an event of its order.
Either may come twice, late or out of order.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from celery import signature
from flask import jsonify
from flask.views import MethodView
from flask_smorest import Blueprint, abort
from marshmallow import Schema, ValidationError

from api.dispatcher import dispatcher
from api.errors import problem
from api.schemas import NothingSchema, refuse_card_numbers
from api.signatures import verified
from api.webhook_schemas import (
    DELIVERY_TYPES,
    PAYMENT_TYPES,
    DeliveryWebhookSchema,
    PaymentWebhookSchema,
    documented,
)
from shared.contracts.queues import TaskName
from shared.messaging.events import publish_events
from shared.settings import get_settings
from shared.telemetry.logs import get_logger
from workers.orders import webhooks
from workers.orders.webhooks import Receipt

_LOGGED = 64  # characters of a type that we do not know

log = get_logger(__name__)
blueprint = Blueprint("webhooks", __name__, url_prefix="/v1/webhooks", description="Webhooks")


@dataclass(frozen=True, slots=True)
class Sender:
    """Who tells us something: the types that mean something to us, and what is done for them."""

    name: str
    types: tuple[str, ...]
    schema: Schema
    act: Callable[[Mapping[str, Any]], None]


@blueprint.route("/payments")
class Payments(MethodView):
    """The payment provider's messages."""

    @blueprint.doc(**documented("tellPayment", PaymentWebhookSchema, PAYMENT_TYPES))
    @blueprint.response(202, NothingSchema, description="Received; or of a type that means nothing to us.")
    def post(self) -> Any:
        """Tell that a charge was reversed: its order is cancelled once the provider's ledger says so, too."""
        return _receive(_PAYMENTS, get_settings().payments_webhook_secrets)


@blueprint.route("/delivery")
class Delivery(MethodView):
    """The couriers' messages."""

    @blueprint.doc(**documented("tellDelivery", DeliveryWebhookSchema, DELIVERY_TYPES))
    @blueprint.response(202, NothingSchema, description="Received; or of a type that means nothing to us.")
    def post(self) -> Any:
        """Tell that an order was picked up or delivered: it shows on the order's timeline."""
        return _receive(_DELIVERY, get_settings().delivery_webhook_secrets)


def _reconcile(details: Mapping[str, Any]) -> None:
    """Have the provider's ledger read: it says what happened, to this charge and to every other."""
    log.info("payment_webhook", type=details["type"], transaction_id=details["data"]["transaction_id"])
    dispatcher().publish(lambda celery: signature(str(TaskName.RECONCILE), app=celery).apply_async())


def _state(details: Mapping[str, Any]) -> None:
    """Publish what the courier states, as any other event of the order."""
    data = dict(details["data"])
    order_id = str(data.pop("order_id"))
    event = webhooks.courier_event(details["type"], order_id, details["timestamp"], data) or abort(HTTPStatus.NOT_FOUND)
    log.info("delivery_webhook", type=event.type, order_id=order_id)
    dispatcher().publish(lambda celery: publish_events(celery, event))


_PAYMENTS = Sender("payments", PAYMENT_TYPES, PaymentWebhookSchema(), _reconcile)
_DELIVERY = Sender("delivery", DELIVERY_TYPES, DeliveryWebhookSchema(), _state)


def _receive(sender: Sender, secrets: tuple[str, ...]) -> Any:
    """Verify, parse, act, put down as received: in this order, so that whatever fails is sent again."""
    message = verified(secrets)
    receipt = webhooks.look_up(sender.name, message.id, message.signed_at)
    if receipt == Receipt.NEW and (details := _parsed(message.body, sender)) is not None:
        sender.act(details)
    match webhooks.put_down(sender.name, message.id, message.signed_at):
        case Receipt.NEW:
            return {}
        case Receipt.RETRIED:
            return jsonify({})  # with its own status, 200
        case Receipt.REPLAYED:
            return problem(HTTPStatus.CONFLICT, "WEBHOOK_REPLAYED")


def _parsed(body: bytes, sender: Sender) -> Mapping[str, Any] | None:
    """Parse a body; None when its type means nothing to us."""
    try:
        message = json.loads(body)
        kind = message.get("type") if isinstance(message, dict) else None
        if isinstance(kind, str) and kind not in sender.types:
            refuse_card_numbers({"type": kind})
            log.info("webhook_ignored", type=kind[:_LOGGED])
            return None
        details: Mapping[str, Any] = sender.schema.load(message)
        # not the rest, which is dropped: the digits of some other field must not keep an event from us for ever
        refuse_card_numbers(details)
        return details
    except ValidationError as error:
        return abort(HTTPStatus.BAD_REQUEST, messages=error.messages_dict)  # type: ignore[no-any-return]
    except (ValueError, RecursionError):  # the latter for a nesting too deep
        return abort(HTTPStatus.BAD_REQUEST, messages={"body": ["Must be JSON."]})  # type: ignore[no-any-return]
