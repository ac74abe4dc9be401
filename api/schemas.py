"""What a request may say and what an answer says. Unknown fields are refused."""

import re
from typing import Any

import pycountry
from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

_CURRENCIES = frozenset(currency.alpha_3 for currency in pycountry.currencies)
_COUNTRIES = frozenset(country.alpha_2 for country in pycountry.countries)
_MAX_AMOUNT = 10**11  # cents; a typing error rather than an order
_MAX_ITEMS = 500
_MAX_QUANTITY = 10**6
_MAX_PAGE = 10**6
_MAX_PAGE_SIZE = 200
_DIGIT_GROUPS = re.compile(r"\d+(?:[ -]\d+)*")
_CARD_LENGTHS = range(13, 20)


def _one_of(known: frozenset[str], what: str) -> Any:
    def check(value: str) -> None:
        if value not in known:
            raise ValidationError(f"Unknown {what}.")

    return check


def _text(longest: int, **options: Any) -> fields.String:
    # NUL and other controls are no text, and PostgreSQL cannot store a NUL
    printable = validate.Regexp(r"^[^\x00-\x1f\x7f\ud800-\udfff]*\Z", error="Must not contain control characters.")
    return fields.String(validate=[validate.Length(min=1, max=longest), printable], **options)


def _integer(least: int, most: int, **options: Any) -> fields.Integer:
    return fields.Integer(strict=True, validate=validate.Range(min=least, max=most), **options)


class Strict(Schema):
    """A request's part."""

    class Meta:
        """Refuse what is not known."""

        unknown = RAISE


class ItemSchema(Strict):
    """One line of an order."""

    sku = _text(64, required=True)
    quantity = _integer(1, _MAX_QUANTITY, required=True)


class AddressSchema(Strict):
    """Where to deliver; ``area`` is the delivery area that couriers are assigned by."""

    line1 = _text(200, required=True)
    line2 = _text(200)
    city = _text(100, required=True)
    postal_code = _text(20, required=True)
    country = fields.String(required=True, validate=_one_of(_COUNTRIES, "ISO 3166-1 alpha-2 country code"))
    area = _text(64, required=True)


class NewOrderSchema(Strict):
    """A new order. Money is integer minor units (cents) of an ISO 4217 currency."""

    customer_id = _text(128, required=True)
    items = fields.List(fields.Nested(ItemSchema), required=True, validate=validate.Length(min=1, max=_MAX_ITEMS))
    amount_cents = _integer(1, _MAX_AMOUNT, required=True)
    currency = fields.String(required=True, validate=_one_of(_CURRENCIES, "ISO 4217 currency code"))
    payment_method = fields.String(
        required=True,
        validate=validate.Regexp(r"^tok_[A-Za-z0-9_]{1,60}\Z", error="Must be a provider's token (tok_...)."),
    )
    address = fields.Nested(AddressSchema, required=True)

    @validates_schema(skip_on_field_errors=False)
    def refuse_card_numbers(self, data: dict[str, Any], **_: Any) -> None:
        """Refuse a body with what looks like a card number anywhere; it must not reach a log or a database."""
        found = {path: ["Looks like a card number; send a provider's token."] for path in _card_like(data)}
        if found:
            raise ValidationError(found)


def _card_like(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [hit for key, nested in value.items() for hit in _card_like(nested, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [hit for index, nested in enumerate(value) for hit in _card_like(nested, f"{path}.{index}")]
    runs = _DIGIT_GROUPS.findall(value) if isinstance(value, str) else ()
    return [path] if any(_holds_card(re.split(r"[ -]", run)) for run in runs) else []


def _holds_card(groups: list[str]) -> bool:
    """Say whether some of the neighbouring groups of digits, taken together, could be a card number."""
    candidates = (
        "".join(groups[start:end]) for start in range(len(groups)) for end in range(start + 1, len(groups) + 1)
    )
    return any(len(digits) in _CARD_LENGTHS and _luhn(digits) for digits in candidates)


def _luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


class OrderSchema(Schema):
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


class PageQuerySchema(Strict):
    """Which page of a list."""

    page = fields.Integer(load_default=1, validate=validate.Range(min=1, max=_MAX_PAGE))
    page_size = fields.Integer(load_default=50, validate=validate.Range(min=1, max=_MAX_PAGE_SIZE))


class OrderPageSchema(Schema):
    """A page of orders; ``count`` is how many there are in all."""

    count = fields.Integer()
    page = fields.Integer()
    page_size = fields.Integer()
    results = fields.List(fields.Nested(OrderSchema))


class EventSchema(Schema):
    """One event of an order's timeline."""

    id = fields.String()
    type = fields.String()
    time = fields.AwareDateTime()
    source = fields.String()
    data = fields.Dict()


class TimelineSchema(Schema):
    """An order's events, oldest first."""

    results = fields.List(fields.Nested(EventSchema))
