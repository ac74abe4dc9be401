"""What a webhook may say. Fields we do not know are ignored: it is an event, and its sender may add to it."""

from datetime import UTC, datetime, timedelta
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from api.documentation import refusal
from api.schemas import NothingSchema, text
from shared.contracts.events import EventType

PAYMENT_TYPES = (EventType.PAYMENT_REVERSED.value,)
DELIVERY_TYPES = (EventType.DELIVERY_PICKED_UP.value, EventType.DELIVERY_DELIVERED.value)
_AHEAD = timedelta(minutes=5)  # a courier's clock may be ahead of ours
_LATE = timedelta(days=30)  # and their sender may have tried for long


def _of_our_time(time: datetime) -> None:
    if not -_LATE <= time - datetime.now(UTC) <= _AHEAD:
        raise ValidationError("Must be of the last 30 days.")


def _type(*known: str) -> fields.String:
    return fields.String(
        required=True,
        validate=validate.OneOf(known),
        metadata={"description": "Other types are accepted and ignored."},
    )


class _Lenient(Schema):
    class Meta:
        unknown = EXCLUDE


class TransactionSchema(_Lenient):
    """Which charge it is about."""

    transaction_id = text(64, required=True)


class PaymentWebhookSchema(_Lenient):
    """Something happened to a charge; what, the provider's ledger says."""

    type = _type(*PAYMENT_TYPES)
    timestamp = fields.AwareDateTime(format="iso", default_timezone=UTC)
    data = fields.Nested(TransactionSchema, required=True)


class CarriedSchema(_Lenient):
    """Which order, and who has it."""

    order_id = fields.UUID(required=True)
    courier = text(64)


class DeliveryWebhookSchema(_Lenient):
    """What a courier did, and when."""

    type = _type(*DELIVERY_TYPES)
    timestamp = fields.AwareDateTime(required=True, format="iso", default_timezone=UTC, validate=_of_our_time)
    data = fields.Nested(CarriedSchema, required=True)


def documented(name: str, schema: type[Schema], types: tuple[str, ...]) -> dict[str, Any]:
    """Return the OpenAPI description of an operation that takes a signed ``schema`` of these types, and any other."""
    headers = {
        "webhook-id": "The sender's id of the message, the same at each attempt; at most 255 characters.",
        "webhook-timestamp": "When this attempt was signed, in seconds since 1970; at most five minutes ago.",
        "webhook-signature": "`v1,` and the signature; several, separated by spaces, while a secret is replaced.",
    }
    answers = {
        400: "A field is missing or wrong.",
        401: "No valid signature of the last five minutes.",
        404: "No secret is set for this sender, or there is no such order.",
        409: "A copy of a message that was received before.",
        413: "Too large.",
        503: "Not received; send it again.",
    }
    again = {
        "description": "Received before; nothing was done.",
        "content": {"application/json": {"schema": NothingSchema}},
    }
    kind = {"type": "string", "not": {"enum": list(types)}}
    other = {"type": "object", "properties": {"type": kind}, "required": ["type"]}
    return {
        "operationId": name,
        "parameters": [
            {"in": "header", "name": name, "description": text, "required": True, "schema": {"type": "string"}}
            for name, text in headers.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"anyOf": [schema, other]}}}},
        "responses": {"200": again, **{str(status): refusal(text) for status, text in answers.items()}},
    }
