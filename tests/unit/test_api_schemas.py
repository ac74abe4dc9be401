"""Bad requests: each gets a 400 problem document that names the field, and nothing is stored."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from marshmallow import ValidationError

from api import create_app
from api.schemas import NewOrderSchema
from shared.database import get_database
from tests.conftest import UseSettings
from tests.support import BODY, REMOVED, new_body
from workers.orders.models import Order

CARD = "4242424242424242"  # passes Luhn, is nobody's
REQUIRED = ["customer_id", "items", "amount_cents", "currency", "payment_method", "address"]
TEXTS = ["customer_id", "items__0__sku", "address__line1", "address__city", "address__postal_code", "address__area"]


class NoBroker:
    """In place of the Celery app: a bad request must not get as far as the broker."""

    class conf:  # noqa: N801 - as Celery names it
        """Its configuration."""

        task_always_eager = True

    def producer_or_acquire(self) -> Any:
        """Nobody may publish."""
        raise AssertionError("published")


@pytest.fixture
def client(house: UseSettings) -> Iterator[FlaskClient]:
    """The API without a broker; afterwards nothing may be stored."""
    app = create_app(celery=NoBroker())  # type: ignore[arg-type]
    with app.test_client() as client:
        yield client
    with get_database("orders").transaction() as session:
        assert session.query(Order).count() == 0


def refused(client: FlaskClient, **request: Any) -> list[str]:
    """Post; return the fields that the 400 names."""
    response = client.post("/v1/orders", **request)
    problem = response.get_json(force=True)
    assert (response.status_code, response.mimetype) == (400, "application/problem+json"), response.text
    assert problem.keys() == {"type", "title", "status", "detail", "instance", "errors"}
    assert (problem["status"], problem["detail"], problem["instance"]) == (400, "VALIDATION_FAILED", "/v1/orders")
    assert response.headers["X-Correlation-ID"]
    assert all(each["message"] for each in problem["errors"])
    return [each["field"] for each in problem["errors"]]


def path(name: str) -> str:
    """Return a field as the answer names it."""
    return name.replace("__", ".")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "pizza",
        "[",
        "[]",
        "5",
        "null",
        '"text"',
        "true",
        "\xff",
        "{'a': 1}",
        '{"amount_cents": ' + "9" * 5000 + "}",
        pytest.param("[" * 200_000, id="nested"),
        pytest.param('{"a":' * 100_000, id="nested-objects"),
    ],
)
def test_what_is_no_json_object_is_refused(client: FlaskClient, body: str) -> None:
    """Broken JSON, another type of value, another encoding, a number or a depth no parser takes."""
    assert refused(client, data=body.encode("latin-1"), content_type="application/json")


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_declared_as_json_is_refused(client: FlaskClient, content_type: str | None) -> None:
    """415: the content type counts."""
    answer = client.post("/v1/orders", data=json.dumps(BODY), content_type=content_type)
    assert (answer.status_code, answer.get_json(force=True)["detail"]) == (415, "UNSUPPORTED_MEDIA_TYPE")


def test_a_body_that_is_missing_is_refused(client: FlaskClient) -> None:
    """400: every field is."""
    assert set(refused(client)) == set(REQUIRED)


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "application/json;q=0"])
def test_a_client_that_reads_no_json_is_refused(client: FlaskClient, accept: str) -> None:
    """406, before anything is stored."""
    answer = client.post("/v1/orders", json=BODY, headers={"Accept": accept})
    assert (answer.status_code, answer.get_json(force=True)["detail"]) == (406, "NOT_ACCEPTABLE")


@pytest.mark.parametrize("accept", ["*/*", "application/*", "application/problem+json", "text/html, */*;q=0.1"])
def test_a_client_that_reads_json_is_served(client: FlaskClient, accept: str) -> None:
    """Whatever else it would rather have."""
    assert client.get("/v1/orders", headers={"Accept": accept}).status_code == 200


@pytest.mark.parametrize("field", [*REQUIRED, "items__0__sku", "items__0__quantity", *TEXTS[2:], "address__country"])
def test_a_missing_field_is_named(client: FlaskClient, field: str) -> None:
    """Every field but ``address.line2`` is required."""
    assert refused(client, json=new_body(**{field: REMOVED})) == [path(field)]


@pytest.mark.parametrize("field", [*REQUIRED, "items__0__sku", "items__0__quantity", *TEXTS[2:], "address__country"])
def test_null_is_no_value(client: FlaskClient, field: str) -> None:
    """``null`` is refused where a value is wanted."""
    assert refused(client, json=new_body(**{field: None})) == [path(field)]


@pytest.mark.parametrize("field", ["coupon", "items__0__note", "address__phone", "status", "order_id", "stamps"])
def test_an_unknown_field_is_named(client: FlaskClient, field: str) -> None:
    """A typing error must not be taken for an order; our own fields cannot be set from outside."""
    assert refused(client, json=new_body(**{field: "x"})) == [path(field)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("amount_cents", value) for value in (-1, 0, 10**11 + 1, 10**30, 25.9, 1e400, "2590", True, [], {})),
        *(("items__0__quantity", value) for value in (0, -1, 10**6 + 1, 10**30, 1.5, "2", True, False)),
        *(("currency", value) for value in ("XXY", "eur", "EU", "", 978, True, ["EUR"])),
        *(("payment_method", value) for value in ("", "card", "tok_", "tok_ ok", "tok_" + "a" * 61, "tok_ok\n", 5)),
        *(("items", value) for value in ([], {}, "pizza", 5)),
        ("items__0", "pizza"),
        ("items__0", []),
        ("address", []),
        ("address", "Main St 1"),
        ("address__country", "Germany"),
        ("address__country", "de"),
    ],
)
def test_a_wrong_value_is_named(client: FlaskClient, field: str, value: Any) -> None:
    """Amounts, quantities, currencies, tokens and shapes that no order has."""
    named = refused(client, json=new_body(**{field: value}))
    assert {each[: len(path(field))] for each in named} == {path(field)}


def test_too_many_items_are_refused(client: FlaskClient) -> None:
    """An order has at most 500 lines."""
    assert refused(client, json=new_body(items=BODY["items"] * 501)) == ["items"]


@pytest.mark.parametrize("field", [*TEXTS, "address__line2"])
@pytest.mark.parametrize("value", ["", "a\x00b", "a\nb", "\x7f", "\ud800", "x" * 201, 5, True, ["x"]])
def test_what_is_no_text_is_refused(client: FlaskClient, field: str, value: Any) -> None:
    """NUL, controls, lone surrogates, nothing at all and novels."""
    assert refused(client, json=new_body(**{field: value})) == [path(field)]


def test_every_wrong_field_is_named_at_once(client: FlaskClient) -> None:
    """A client corrects a body in one go."""
    body = new_body(amount_cents=-1, currency="XXY", items__0__quantity=0, address__city=REMOVED, coupon="x")
    assert set(refused(client, json=body)) == {
        *("amount_cents", "currency", "items.0.quantity", "address.city", "coupon"),
    }


@pytest.mark.parametrize("field", [*TEXTS, "address__line2", "payment_method"])
@pytest.mark.parametrize(
    "number",
    [
        CARD,
        "4242 4242 4242 4242",
        "4242-4242-4242-4242",
        "378282246310005",
        f"card {CARD}, thanks",
        f"no {CARD}",
        f"12 {CARD}",
        f"7-{CARD}",
    ],
)
def test_what_looks_like_a_card_number_is_refused(client: FlaskClient, field: str, number: str) -> None:
    """Anywhere in the body, with separators, within a sentence or behind a house number."""
    short = number[:20] if field == "address__postal_code" else number
    if CARD in number and CARD not in short:
        short = CARD
    assert path(field) in refused(client, json=new_body(**{field: short}))


def test_a_card_number_is_found_beside_other_mistakes(client: FlaskClient) -> None:
    """It is named, too, when the body has other errors."""
    body = new_body(customer_id=CARD, amount_cents=-1)
    assert set(refused(client, json=body)) == {"customer_id", "amount_cents"}


@pytest.mark.parametrize(
    "text", ["4242424242424243", "123456789012", "order 1234567", "tel 030 1234567", CARD + "0000"]
)
def test_what_does_not_look_like_a_card_number_is_taken(text: str) -> None:
    """Wrong check digit, too few or too many digits."""
    assert NewOrderSchema().load(new_body(customer_id=text))["customer_id"] == text


def test_a_token_with_digits_is_taken() -> None:
    """Providers' tokens hold digits that mean nothing."""
    assert NewOrderSchema().load(new_body(payment_method="tok_1MqLiJLkdIwHu7ix"))


def test_the_answer_never_quotes_a_value(client: FlaskClient) -> None:
    """What was refused may be a card number: the problem document names fields only."""
    response = client.post("/v1/orders", json=new_body(customer_id=CARD, payment_method=CARD, currency=CARD))
    assert response.status_code == 400
    assert CARD not in response.text


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("page=0", "page"),
        ("page=-1", "page"),
        ("page=x", "page"),
        ("page=1000001", "page"),
        (f"page={'9' * 5000}", "page"),
        ("page_size=0", "page_size"),
        ("page_size=201", "page_size"),
        ("size=5", "size"),
        ("page=1%00", "page"),
        ("page=101&page_size=100", "page"),
        ("after=x", "after"),
        ("after=%00", "after"),
        ("status=CONFIRMED", "status"),
        ("created_after=yesterday", "created_after"),
    ],
)
def test_a_wrong_query_is_named(client: FlaskClient, query: str, field: str) -> None:
    """Lists are paged within bounds."""
    response = client.get(f"/v1/orders?{query}")
    assert response.status_code == 400
    problem = response.get_json(force=True)
    assert {each["field"] for each in problem["errors"]} == {field}


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00Z"])
@pytest.mark.parametrize("name", ["created_after", "created_before"])
def test_any_time_may_be_asked_for(client: FlaskClient, name: str, time: str) -> None:
    """Those included that no database reaches: there are no orders then."""
    assert client.get(f"/v1/orders?{name}={time}").json["results"] == []


def test_an_integer_is_one_however_it_is_written() -> None:
    """JSON knows no difference between 2590 and 2590.0."""
    loaded = NewOrderSchema().load(new_body(amount_cents=2590.0, items__0__quantity=2.0))
    assert (loaded["amount_cents"], loaded["items"][0]["quantity"]) == (2590, 2)
    assert type(loaded["amount_cents"]) is int


@pytest.mark.parametrize("url", ["/v1/orders/x", "/v1/orders/00000000-0000-4000-8000-000000000000", "/v1/order", "/"])
@pytest.mark.parametrize("rest", ["", "/events"])
def test_what_does_not_exist_is_a_problem_document(client: FlaskClient, url: str, rest: str) -> None:
    """404 in the same format, no HTML."""
    response = client.get(url.rstrip("/") + rest or "/")
    assert (response.status_code, response.mimetype) == (404, "application/problem+json")
    assert response.get_json(force=True)["detail"] == "NOT_FOUND"


def test_a_method_that_does_not_exist_is_a_problem_document(client: FlaskClient) -> None:
    """405 says what is allowed."""
    response = client.delete("/v1/orders")
    assert (response.status_code, response.mimetype) == (405, "application/problem+json")
    assert "POST" in response.headers["Allow"]


def test_a_body_that_is_too_large_is_refused(house: UseSettings) -> None:
    """413 before anything is parsed."""
    house(api_max_bytes=1000)
    app = create_app(celery=NoBroker())  # type: ignore[arg-type]
    response = app.test_client().post("/v1/orders", json=new_body(customer_id="x" * 2000))
    assert (response.status_code, response.mimetype) == (413, "application/problem+json")
    assert response.get_json(force=True)["detail"] == "BODY_TOO_LARGE"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@hypothesis_settings(max_examples=200)
@given(st.sampled_from([*REQUIRED, "items__0", "address__area", "extra"]), json_values)
def test_no_json_value_breaks_the_schema(field: str, value: Any) -> None:
    """Whatever a field holds, the answer is an order or a list of fields; what is taken, JSON can carry on."""
    try:
        loaded = NewOrderSchema().load(new_body(**{field: value}))
    except ValidationError:
        return
    assert json.loads(json.dumps(loaded)) == loaded
