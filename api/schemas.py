"""What a request may say and what an answer says. Unknown fields are refused."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pycountry
from marshmallow import RAISE, Schema, ValidationError, validate, validates_schema
from webargs import fields

from shared import cards
from shared.contracts.saga import Status
from workers.orders.listing import Cursor

_CURRENCIES = {currency.alpha_3 for currency in pycountry.currencies}
_COUNTRIES = {country.alpha_2 for country in pycountry.countries}
_MAX_AMOUNT = 10**11  # cents; a typing error rather than an order
_MAX_ITEMS = 500
_MAX_QUANTITY = 10**6
_MAX_PAGE = 100  # the database counts its way to a page; `after` it finds at once
_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
_MAX_PAGE_SIZE = 200


def _one_of(known: Iterable[str], what: str) -> validate.OneOf:
    return validate.OneOf(sorted(known), error=f"Unknown {what}.")


class _Whole(validate.Regexp):
    """A pattern for a whole text, in the words that JSON Schema and Python share; Python's ``$`` takes a line end."""

    def __call__(self, value: Any) -> Any:
        """Return the value; raises ``ValidationError``."""
        if not self.regex.fullmatch(value):
            raise ValidationError(self.error)
        return value


def text(longest: int, **options: Any) -> fields.String:
    """Return a field for text that a database can store."""
    # NUL and other controls are no text, and PostgreSQL cannot store a NUL
    printable = _Whole(r"^[^\x00-\x1f\x7f]*$", error="Must not contain control characters.")
    return fields.String(validate=[validate.Length(min=1, max=longest), printable, _no_surrogates], **options)


def _no_surrogates(value: str) -> None:
    """Refuse half a character: it has no encoding."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValidationError("Must be Unicode.") from None


def token(**options: Any) -> fields.String:
    """Return a field for a payment provider's token."""
    looks = _Whole(r"^tok_[A-Za-z0-9_]{1,60}$", error="Must be a provider's token (tok_...).")
    return fields.String(validate=looks, **options)


class _Integer(fields.Integer):
    """An integer as JSON has it: 2.0 is one, "2" and true are none."""

    def _validated(self, value: Any) -> Any:
        return super()._validated(int(value) if isinstance(value, float) and value.is_integer() else value)


def _integer(least: int, most: int, **options: Any) -> _Integer:
    return _Integer(strict=True, validate=validate.Range(min=least, max=most), **options)


class _Time(fields.AwareDateTime):
    """A point in time, UTC where it does not say; before and after all orders, where databases cannot look."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return min(max(super()._deserialize(value, *args, **kwargs), _EARLIEST), _LATEST)


class CursorField(fields.String):
    """A place in the list, as an earlier answer gave it."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return Cursor.parse(super()._deserialize(value, *args, **kwargs))
        except ValueError:
            raise ValidationError("Must be the `next` of an earlier answer.") from None


def refuse_card_numbers(body: Any) -> None:
    """Refuse parsed JSON with what looks like a card number anywhere; it must not reach a log or a database."""
    found = {path or "body": ["Looks like a card number; send a provider's token."] for path in cards.find(body)}
    if found:
        raise ValidationError(found)


class Strict(Schema):
    """A request's part."""

    class Meta:
        """Refuse what is not known."""

        unknown = RAISE


class Body(Strict):
    """A request's whole body."""

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def refuse_cards(self, _data: Any, original: Any, **_: Any) -> None:
        """Refuse card numbers, in fields that we do not know as well."""
        refuse_card_numbers(original)


class NothingSchema(Body):
    """A request that has nothing to say."""


class ItemSchema(Strict):
    """One line of an order."""

    sku = text(64, required=True)
    quantity = _integer(1, _MAX_QUANTITY, required=True)


class AddressSchema(Strict):
    """Where to deliver; ``area`` is the delivery area that couriers are assigned by."""

    line1 = text(200, required=True)
    line2 = text(200)
    city = text(100, required=True)
    postal_code = text(20, required=True)
    country = fields.String(required=True, validate=_one_of(_COUNTRIES, "ISO 3166-1 alpha-2 country code"))
    area = text(64, required=True, metadata={"example": "north"})


class NewOrderSchema(Body):
    """A new order. Money is integer minor units (cents) of an ISO 4217 currency."""

    customer_id = text(128, required=True)
    items = fields.List(fields.Nested(ItemSchema), required=True, validate=validate.Length(min=1, max=_MAX_ITEMS))
    amount_cents = _integer(1, _MAX_AMOUNT, required=True)
    currency = fields.String(required=True, validate=_one_of(_CURRENCIES, "ISO 4217 currency code"))
    payment_method = token(required=True)
    address = fields.Nested(AddressSchema, required=True)


class Shown(Schema):
    """An answer's part; every field is there, unless it is ``x-optional``."""

    def on_bind_field(self, field_name: str, field_obj: Any) -> None:
        """Describe a field as one that a client may rely on."""
        super().on_bind_field(field_name, field_obj)
        field_obj.required = not field_obj.metadata.get("x-optional")


class OrderSchema(Shown):
    """An order as a client sees it; neither the payment method nor the address."""

    id = fields.String()
    status = fields.String()
    customer_id = fields.String()
    items = fields.List(fields.Nested(ItemSchema))
    amount_cents = fields.Integer()
    currency = fields.String()
    transaction_id = fields.String(allow_none=True)
    courier = fields.String(allow_none=True)
    failure = fields.String(allow_none=True)
    created_at = fields.AwareDateTime()
    updated_at = fields.AwareDateTime()
    correlation_id = fields.String()


class ListQuerySchema(Strict):
    """Which part of the list: a page by its number, or what follows ``after``; of which orders."""

    page = fields.Integer(
        load_default=1,
        validate=validate.Range(min=1, max=_MAX_PAGE),
        metadata={"description": "Farther than the last one `after` leads."},
    )
    page_size = fields.Integer(load_default=50, validate=validate.Range(min=1, max=_MAX_PAGE_SIZE))
    after = CursorField(
        metadata={
            "description": "The `next` of an earlier answer; fast however far it is.",
            "pattern": f"^{Cursor.PATTERN}$",
        }
    )
    status = fields.String(validate=validate.OneOf(list(map(str, Status))))
    created_after = _Time(format="iso", default_timezone=UTC)
    created_before = _Time(format="iso", default_timezone=UTC)


class OrderPageSchema(Shown):
    """Some orders, newest first; ``count`` is how many there are in all, ``next`` leads on."""

    count = fields.Integer(metadata={"description": "Not with `after`.", "x-optional": True})
    page = fields.Integer(metadata={"description": "Not with `after`.", "x-optional": True})
    page_size = fields.Integer()
    next = fields.String(allow_none=True)
    results = fields.List(fields.Nested(OrderSchema))


class DetailQuerySchema(Strict):
    """What to show of an order besides itself."""

    expand = fields.DelimitedList(
        fields.String(validate=validate.OneOf(["payment", "delivery", "timeline"])),
        load_default=list,
        validate=validate.Length(min=1),
        metadata={"description": "Any of payment, delivery, timeline; separated by commas."},
    )


class EventSchema(Shown):
    """One event of an order's timeline."""

    id = fields.String()
    type = fields.String()
    time = fields.AwareDateTime()
    source = fields.String()
    data = fields.Dict()


class TimelineSchema(Shown):
    """An order's events, oldest first."""

    results = fields.List(fields.Nested(EventSchema))


class PaymentSchema(Shown):
    """An order's money, in cents."""

    status = fields.String(allow_none=True)
    transaction_id = fields.String(allow_none=True)
    amount_cents = fields.Integer()
    currency = fields.String()
    captured_at = fields.AwareDateTime(allow_none=True)
    refunded_at = fields.AwareDateTime(allow_none=True)
    reversed_at = fields.AwareDateTime(allow_none=True)


class DeliverySchema(Shown):
    """An order's way to the customer."""

    status = fields.String(allow_none=True)
    courier = fields.String(allow_none=True)
    assigned_at = fields.AwareDateTime(allow_none=True)
    picked_up_at = fields.AwareDateTime(allow_none=True)
    delivered_at = fields.AwareDateTime(allow_none=True)
    released_at = fields.AwareDateTime(allow_none=True)


class OrderDetailSchema(OrderSchema):
    """An order with what was asked for besides."""

    payment = fields.Nested(PaymentSchema, metadata={"x-optional": True})
    delivery = fields.Nested(DeliverySchema, metadata={"x-optional": True})
    timeline = fields.List(fields.Nested(EventSchema), metadata={"x-optional": True})
