"""What looks like a card number: found wherever it is in a body, masked wherever a text is passed on."""

import io
import json
import logging
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from api import create_app
from shared import cards
from shared.settings import Settings
from shared.telemetry.logs import configure_logging
from simulators.webhooks import new_secret, signed
from tests.conftest import UseSettings
from tests.support import json_logs, new_body

CARD = "4242424242424242"  # passes Luhn, is nobody's
MASK = "9" * 16


@pytest.mark.parametrize(
    "text",
    [CARD, "4242 4242 4242 4242", "4242-4242-4242-4242", "378282246310005", f"no 12 {CARD}, thanks", f"x{CARD}y"],
)
def test_a_card_number_loses_its_digits(text: str) -> None:
    """With its separators, within a sentence, next to other digits."""
    assert cards.looks_like_one(text)
    masked = cards.masked(text)
    assert len(masked) == len(text)
    assert not cards.looks_like_one(masked)
    assert not set("12345678") & set(masked) - set("no12 ")


@pytest.mark.parametrize(
    "text",
    [
        "4242424242424243",
        "123456789012",
        f"{CARD}0000",
        "0" * 16,
        "42424242-4242-4242-4242-424242424242",
        "2026-11-21T14:46:21.123456Z",
        "tok_1MqLiJLkdIwHu7ix",
    ],
)
def test_other_digits_stay(text: str) -> None:
    """A wrong check digit, too few or too many, zeros, a UUID, a time, a token."""
    assert cards.masked(text) == text


@given(st.text(alphabet="0123456789 -", max_size=60))
def test_masking_is_done_once(text: str) -> None:
    """What is masked holds no card number; whatever else there is stays."""
    masked = cards.masked(text)
    assert not cards.looks_like_one(masked)
    assert [a for a, b in zip(text, masked, strict=True) if a != b and not a.isdigit()] == []


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"a": CARD}, "a"),
        ({"a": {"b": [0, {"c": f"no {CARD}"}]}}, "a.b.1.c"),
        ({"a": int(CARD)}, "a"),
        ({"a": float(CARD)}, "a"),
        ([int(CARD)], "0"),
        (CARD, ""),
        ({"a": {CARD: 1}}, f"a.{MASK}"),
    ],
)
def test_a_card_number_is_found_anywhere(body: Any, where: str) -> None:
    """As text, number or key, at any depth; its path does not tell it."""
    assert list(cards.find(body)) == [where]


def test_a_body_of_digits_takes_no_time() -> None:
    """The work grows with the body and no faster: a million digits end well within the test's time."""
    deep: Any = "1 " * 300_000
    for _ in range(5000):
        deep = [deep]
    assert list(cards.find({"a": "1" * 300_000, "deep": deep})) == []


@pytest.fixture
def client(house: UseSettings) -> FlaskClient:
    """The API."""
    return create_app().test_client()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"coupon": CARD}, "coupon"),
        ({"coupon": {"deep": [{"er": int(CARD)}]}}, "coupon.deep.0.er"),
        ({"amount_cents": int(CARD)}, "amount_cents"),
        ({"items__0__quantity": float(CARD)}, "items.0.quantity"),
        ({"address__phone": CARD}, "address.phone"),
        ({CARD: "x"}, MASK),
        ({f"address__{CARD}": 1}, f"address.{MASK}"),
        ({"customer_id": [CARD]}, "customer_id.0"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/orders", "/api/orders/"])
def test_a_body_with_a_card_number_is_refused(client: FlaskClient, path: str, changes: Any, named: str) -> None:
    """400 that names the field, in fields that we do not know and as a key as well; the answer does not quote it."""
    answer = client.post(path, json=new_body(**changes))
    assert answer.status_code == 400
    said = [each["message"] for each in answer.get_json(force=True)["errors"] if each["field"] == named]
    assert any("card number" in message for message in said)
    assert CARD not in answer.text


def test_a_cancellation_with_a_card_number_is_refused(client: FlaskClient) -> None:
    """It has nothing to say, and no card number either."""
    answer = client.post("/v1/orders/00000000-0000-4000-8000-000000000000/cancel", json={CARD: {"x": CARD}})
    assert (answer.status_code, CARD in answer.text) == (400, False)
    assert f"{MASK}.x" in [each["field"] for each in answer.get_json(force=True)["errors"]]


@pytest.mark.parametrize("message", [{"type": CARD}, {"type": "payment.reversed", "data": {"transaction_id": CARD}}])
def test_a_webhook_with_a_card_number_is_refused(house: UseSettings, message: Any) -> None:
    """Its type and its ids are logged: 400 before that."""
    secret = new_secret()
    house(payments_webhook_secrets=(secret,))
    body = json.dumps(message)
    with json_logs() as lines:
        answer = (
            create_app().test_client().post("/v1/webhooks/payments", data=body, headers=signed([secret], "msg_1", body))
        )
    assert (answer.status_code, CARD in answer.text) == (400, False)
    assert CARD not in str(lines())


@pytest.mark.parametrize("path", [f"/v1/orders/{CARD}", f"/v1/orders?status={CARD}", f"/v1/orders?{CARD}=1"])
def test_an_answer_does_not_quote_the_url(client: FlaskClient, path: str) -> None:
    """Neither its path nor its query."""
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert CARD not in answer.text


def test_a_correlation_id_is_no_card_number(client: FlaskClient) -> None:
    """It would be on every line of the log, of every process: another one is made."""
    answer = client.get("/v1/orders", headers={"X-Correlation-ID": f"order-{CARD}"})
    assert CARD not in answer.headers["X-Correlation-ID"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_log_line_tells_a_card_number(log_format: str) -> None:
    """From wherever it comes: text, field, number, traceback."""
    root = logging.getLogger()
    handlers, level, stream = root.handlers[:], root.level, io.StringIO()
    with redirect_stderr(stream):
        configure_logging(replace(Settings(), log_format=log_format), "test")
    try:
        logging.getLogger("library").warning("cannot read %s", CARD, extra={"number": CARD})
        try:
            int(f"x{CARD}")
        except ValueError:
            logging.getLogger("library").exception("number %d", int(CARD))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    said = stream.getvalue()
    assert (CARD in said, said.count(MASK) >= 3) == (False, True), said
    if log_format == "json":
        assert all(json.loads(line) for line in said.splitlines())
