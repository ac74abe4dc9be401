"""Events: facts about an order, in the past tense, as CloudEvents 1.0 envelopes.

An event's id is computed from what it states, so a step that runs twice states the same event twice and
whoever records it can tell. Versions only grow by optional fields.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from shared.errors import MalformedMessage

VERSION = 1
CONTENT_TYPE = "application/cloudevents+json"
_SOURCE_PREFIX = "/waybill/"
_OUR_TIMES = validate.Range(min=datetime(2000, 1, 1, tzinfo=UTC), max=datetime(9000, 1, 1, tzinfo=UTC))
_NAMESPACE = uuid.UUID("8f0e2d1c-6d0b-5a35-9c57-0d6a8f5f1f0e")


class EventType(StrEnum):
    """What can have happened to an order, and who states it."""

    ORDER_PLACED = "order.placed"  # api
    PAYMENT_CAPTURED = "payment.captured"  # payments
    PAYMENT_DECLINED = "payment.declined"
    PAYMENT_REFUNDED = "payment.refunded"
    PAYMENT_REVERSED = "payment.reversed"
    DELIVERY_ASSIGNED = "delivery.assigned"  # delivery
    DELIVERY_UNASSIGNABLE = "delivery.unassignable"
    DELIVERY_RELEASED = "delivery.released"
    DELIVERY_PICKED_UP = "delivery.picked_up"  # the courier, through the api
    DELIVERY_DELIVERED = "delivery.delivered"
    CUSTOMER_NOTIFIED = "customer.notified"  # notifications
    ORDER_CANCEL_REQUESTED = "order.cancel_requested"  # orders
    ORDER_CANCELLED = "order.cancelled"
    ORDER_COMPLETED = "order.completed"
    ORDER_EXPIRED = "order.expired"
    DEADLETTER_REQUEUED = "deadletter.requeued"  # an operator
    DEADLETTER_EDITED = "deadletter.edited"
    DEADLETTER_DROPPED = "deadletter.dropped"
    STEP_RETRYING = "step.retrying"  # any step
    STEP_PARKED = "step.parked"


def event_id(order_id: str, event_type: str, discriminator: str = "") -> str:
    """Return the id of the event that states ``event_type`` about an order; the same for the same fact."""
    return str(uuid.uuid5(_NAMESPACE, f"{order_id}/{event_type}/{discriminator}"))


@dataclass(frozen=True, slots=True)
class Event:
    """One fact about one order (``subject``)."""

    id: str
    type: str
    subject: str
    source: str
    time: datetime
    correlation_id: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_cloudevent(self) -> dict[str, Any]:
        """Return the structured-mode CloudEvents 1.0 envelope, ready for JSON."""
        return {
            "specversion": "1.0",
            "id": self.id,
            "source": f"{_SOURCE_PREFIX}{self.source}",
            "type": self.type,
            "subject": self.subject,
            "time": self.time.isoformat(),
            "datacontenttype": "application/json",
            "dataschema": f"urn:waybill:event:{self.type}:{VERSION}",
            "correlationid": self.correlation_id,
            "data": dict(self.data),
        }


def new_event(
    event_type: str,
    order_id: str,
    *,
    source: str,
    correlation_id: str,
    data: Mapping[str, Any] | None = None,
    discriminator: str = "",
) -> Event:
    """State a fact about an order now; ``discriminator`` tells apart facts of one type."""
    return Event(
        id=event_id(order_id, event_type, discriminator),
        type=event_type,
        subject=order_id,
        source=source,
        time=datetime.now(UTC),
        correlation_id=correlation_id,
        data=data or {},
    )


def _name(longest: int, least: int = 1) -> validate.Regexp:
    """Accept what an identifier may look like; what the database could not store is refused here."""
    return validate.Regexp(rf"^({_SOURCE_PREFIX})?[\w./:@-]{{{least},{longest}}}\Z")


class _CloudEventSchema(Schema):
    class Meta:
        unknown = EXCLUDE  # a later version's fields are not ours to judge

    specversion = fields.String(required=True, validate=validate.Equal("1.0"))
    id = fields.UUID(required=True)
    source = fields.String(required=True, validate=_name(64))
    type = fields.String(required=True, validate=_name(64))
    subject = fields.UUID(required=True)
    time = fields.AwareDateTime(required=True, format="iso", default_timezone=UTC, validate=_OUR_TIMES)
    correlationid = fields.String(load_default="", validate=_name(64, least=0))
    data = fields.Dict(keys=fields.String(), load_default=dict)


_SCHEMA = _CloudEventSchema()


def parse_event(payload: object) -> Event:
    """Read a CloudEvents envelope; raise ``MalformedMessage`` naming the fields that break the schema."""
    try:
        loaded = _SCHEMA.load(payload)  # type: ignore[arg-type]  # load() itself refuses what is no mapping
    except ValidationError as error:
        raise MalformedMessage("event", error.messages_dict) from None
    return Event(
        id=str(loaded["id"]),
        type=loaded["type"],
        subject=str(loaded["subject"]),
        source=loaded["source"].removeprefix(_SOURCE_PREFIX),
        time=loaded["time"],
        correlation_id=loaded["correlationid"],
        data=loaded["data"],
    )
