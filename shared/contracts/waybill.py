"""The waybill: the one message body that travels the chain.

Each step adds its stamp. Fields that this version does not know travel on untouched, so that an old worker
never strips what a new one wrote.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from marshmallow import INCLUDE, Schema, ValidationError, fields, validate

from shared.errors import MalformedMessage

VERSION = 1


@dataclass(frozen=True, slots=True)
class Waybill:
    """One order on its way. Money is integer minor units (cents) of an ISO 4217 currency."""

    order_id: str
    correlation_id: str
    customer_id: str
    items: list[dict[str, Any]]
    amount_cents: int
    currency: str
    payment_method: str
    address: dict[str, str]
    stamps: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = VERSION
    extra: dict[str, Any] = field(default_factory=dict)

    def stamped(self, step: str, stamp: Mapping[str, Any]) -> "Waybill":
        """Return a copy that carries ``stamp`` under the step's name; an empty stamp changes nothing."""
        return replace(self, stamps={**self.stamps, step: dict(stamp)}) if stamp else self

    def to_dict(self) -> dict[str, Any]:
        """Return the body as it travels, ready for JSON."""
        body = {name: getattr(self, name) for name in self.__slots__ if name != "extra"}
        return {**self.extra, **body}

    def __repr__(self) -> str:
        """Name the order only: a waybill holds personal data that must not reach a log."""
        return f"<Waybill {self.order_id}>"


class _ItemSchema(Schema):
    class Meta:
        unknown = INCLUDE

    sku = fields.String(required=True)
    quantity = fields.Integer(required=True, strict=True, validate=validate.Range(min=1))


class _WaybillSchema(Schema):
    class Meta:
        unknown = INCLUDE

    version = fields.Integer(required=True, strict=True, validate=validate.Range(min=1))
    order_id = fields.UUID(required=True)
    correlation_id = fields.String(required=True)
    customer_id = fields.String(required=True)
    items = fields.List(fields.Nested(_ItemSchema), required=True, validate=validate.Length(min=1))
    amount_cents = fields.Integer(required=True, strict=True, validate=validate.Range(min=0))
    currency = fields.String(required=True, validate=validate.Regexp(r"^[A-Z]{3}$"))
    payment_method = fields.String(required=True)
    address = fields.Dict(keys=fields.String(), values=fields.String(), required=True)
    stamps = fields.Dict(keys=fields.String(), values=fields.Dict(), load_default=dict)


_SCHEMA = _WaybillSchema()


def parse_waybill(body: object) -> Waybill:
    """Read a waybill; raise ``MalformedMessage`` naming the fields (never their values) that break the schema."""
    try:
        loaded = _SCHEMA.load(body)  # type: ignore[arg-type]  # load() itself refuses what is no mapping
    except ValidationError as error:
        raise MalformedMessage("waybill", _fields(error.messages_dict)) from None
    known = {name: loaded.pop(name) for name in _SCHEMA.fields}
    return Waybill(**{**known, "order_id": str(known["order_id"])}, extra=loaded)


def _fields(messages: dict[str, Any]) -> Iterator[str]:
    """Name what is wrong; the keys within an address or a stamp are data and stay unnamed."""
    for name, nested in messages.items():
        if name == "items" and isinstance(nested, dict):
            yield from (f"items.{index}.{part}" for index, parts in nested.items() for part in parts)
        else:
            yield name
