"""The waybill: what it accepts, what it carries on untouched, and what its errors never say."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.waybill import Waybill, parse_waybill
from shared.errors import MalformedMessage
from tests.support import REMOVED, new_body, new_waybill

SECRET = "tok_secret_4242"


def travelling(**changes: Any) -> dict[str, Any]:
    """Return a waybill's body with fields changed by path."""
    return {**new_waybill().to_dict(), **new_body(**changes)}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def test_a_waybill_survives_the_wire() -> None:
    """What is written is read back equal, through JSON."""
    waybill = new_waybill().stamped("payments.charge", {"transaction_id": "txn_1"})
    assert parse_waybill(json.loads(json.dumps(waybill.to_dict()))) == waybill


@given(st.dictionaries(st.text(min_size=1).map("x_".__add__), json_values, max_size=4))
def test_unknown_fields_travel_on_untouched(unknown: dict[str, Any]) -> None:
    """A field of a later version passes through an old worker, whatever it holds."""
    body = {**new_waybill().to_dict(), **unknown}
    assert (
        parse_waybill(body).stamped("payments.charge", {"transaction_id": "txn_1"}).to_dict().items() >= unknown.items()
    )


def test_unknown_fields_within_an_item_travel_on_untouched() -> None:
    """The same holds inside the lines of an order."""
    body = travelling(items__0__note="no onions")
    assert parse_waybill(body).to_dict()["items"] == body["items"]


def test_a_later_version_is_read() -> None:
    """Versions only grow by optional fields, so a later one is no error."""
    assert parse_waybill({**travelling(), "version": 7, "gift": True}).to_dict()["version"] == 7


def test_a_stamp_is_added_to_a_copy() -> None:
    """Stamping leaves the waybill as it was; an empty stamp adds nothing."""
    waybill = new_waybill()
    stamped = waybill.stamped("delivery.assign", {"courier": "cou_1"})
    assert (waybill.stamps, stamped.stamps) == ({}, {"delivery.assign": {"courier": "cou_1"}})
    assert stamped.stamped("orders.cancel", {}) is stamped


def test_a_waybill_shows_its_order_and_nothing_else() -> None:
    """``repr`` is what ends up in logs by accident."""
    waybill = new_waybill(payment_method=SECRET)
    assert repr(waybill) == str(waybill) == f"<Waybill {waybill.order_id}>"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, REMOVED) for name in new_waybill().to_dict() if name not in ("stamps", "extra")),
        ("version", 0),
        ("version", "one"),
        ("order_id", "no uuid"),
        ("order_id", 5),
        ("items", []),
        ("items", {}),
        ("items", ["pizza"]),
        ("amount_cents", -1),
        ("amount_cents", 12.5),
        ("amount_cents", "2590"),
        ("amount_cents", True),
        ("currency", "eur"),
        ("currency", "EURO"),
        ("payment_method", None),
        ("address", []),
        ("address", {"area": 5}),
        ("stamps", {"payments.charge": "captured"}),
    ],
)
def test_a_broken_field_is_named(field: str, value: Any) -> None:
    """What breaks the schema is refused by name."""
    body = {**travelling(), field: value}
    if value is REMOVED:
        del body[field]
    with pytest.raises(MalformedMessage, match=f"waybill: .*{field}"):
        parse_waybill(body)


@pytest.mark.parametrize("quantity", [0, -1, "2", 1.5, True, None])
def test_a_broken_quantity_is_named(quantity: Any) -> None:
    """Errors reach into the lines."""
    with pytest.raises(MalformedMessage, match="quantity"):
        parse_waybill({**travelling(), "items": [{"sku": "a", "quantity": quantity}]})


@pytest.mark.parametrize("body", [None, [], "x", 5, [SECRET], {}])
def test_what_is_no_waybill_at_all_is_refused(body: Any) -> None:
    """Any JSON value may arrive on a queue."""
    with pytest.raises(MalformedMessage):
        parse_waybill(body)


@pytest.mark.parametrize("field", sorted(new_waybill().to_dict()))
@pytest.mark.parametrize(
    "wrap", [lambda secret: secret, lambda secret: [secret], lambda secret: {"a": secret}, lambda secret: [[secret]]]
)
def test_an_error_never_quotes_a_value(field: str, wrap: Any) -> None:
    """Wherever the secret stands in a broken body, the message does not hold it."""
    body = {**travelling(), field: wrap(SECRET), "version": None}
    with pytest.raises(MalformedMessage) as caught:
        parse_waybill(body)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("field", ["address", "stamps"])
def test_an_error_never_quotes_a_key_of_somebody_elses(field: str) -> None:
    """The keys of an open mapping are data too."""
    with pytest.raises(MalformedMessage) as caught:
        parse_waybill({**travelling(), field: {SECRET: None}})
    assert SECRET not in str(caught.value)


def test_an_error_stays_short() -> None:
    """A body with thousands of mistakes does not make a log line of megabytes."""
    with pytest.raises(MalformedMessage) as caught:
        parse_waybill({**travelling(), "items": [{}] * 10_000})
    assert len(str(caught.value)) < 2_000


@given(json_values)
def test_no_value_breaks_the_parser(body: Any) -> None:
    """Whatever JSON is parsed, the answer is a waybill or ``MalformedMessage``."""
    with contextlib.suppress(MalformedMessage):
        assert isinstance(parse_waybill(body), Waybill)


@given(st.sampled_from(sorted(new_waybill().to_dict())), json_values)
def test_no_field_value_breaks_the_parser(field: str, value: Any) -> None:
    """The same for each single field of an otherwise good body."""
    try:
        parsed = parse_waybill({**travelling(), field: value})
    except MalformedMessage:
        return
    assert json.loads(json.dumps(parsed.to_dict()))
