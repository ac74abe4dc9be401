"""HTTP in, COMPLETED or CANCELLED out, the money right: on the embedded stack and on real servers."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from stacks.processes import poll
from tests.e2e.conftest import TIMEOUT, Client, embedded_process, new_token, psp, started
from tests.support import REMOVED, new_body

MANY = 25


def test_an_order_completes(client: Client) -> None:
    """202 with Location; then PENDING moves to COMPLETED, with transaction, courier, timeline and one charge."""
    token = new_token()
    answer = client.request("POST", "/v1/orders", json=new_body(payment_method=token))
    assert answer.status == 202
    placed = answer.json()
    path = answer.headers["Location"]
    assert path == f"/v1/orders/{placed['id']}"
    assert (placed["status"], placed["amount_cents"], placed["customer_id"]) == ("PENDING", 2590, "cus_1")
    order = client.follow(path, "COMPLETED")
    assert (order["failure"], order["correlation_id"]) == (None, placed["correlation_id"])
    assert order["courier"] in {"cou-ada", "cou-bob"}
    (charge,) = client.entries(token)
    assert (charge["kind"], charge["amount_cents"], charge["currency"]) == ("charge", 2590, "EUR")
    assert charge["transaction_id"] == order["transaction_id"]


def test_the_timeline_tells_what_happened(client: Client) -> None:
    """Each fact once, in the order of time, with its source."""
    path = client.place()
    client.follow(path, "COMPLETED")
    events = client.events(path)
    facts = ["order.placed", "payment.captured", "delivery.assigned", "customer.notified"]
    assert [event["type"] for event in events if event["type"] in facts] == facts
    assert len({event["id"] for event in events}) == len(events)
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    sources = {event["type"]: event["source"] for event in events}
    assert [sources[fact] for fact in facts] == ["api", "payments", "delivery", "notifications"]


@pytest.mark.parametrize("token", ["tok_declined", "tok_insufficient_funds"])
def test_a_declined_card_cancels_the_order(client: Client, token: str) -> None:
    """CANCELLED with the failure's code, and no money moved."""
    order = client.follow(client.place(payment_method=token), "CANCELLED")
    assert (order["failure"], order["courier"], order["transaction_id"]) == ("PAYMENT_FAILED", None, None)
    assert client.entries(token) == []


def test_an_area_that_nobody_serves_is_refunded(client: Client) -> None:
    """CANCELLED with the failure's code; the ledger shows the charge, its refund, and nothing left."""
    token = new_token()
    path = client.place(payment_method=token, address__area="atlantis")
    order = client.follow(path, "CANCELLED")
    assert (order["failure"], order["courier"]) == ("NO_COURIER", None)
    assert [entry["kind"] for entry in client.entries(token)] == ["charge", "refund"]
    assert client.net(token) == 0
    assert {"delivery.unassignable", "payment.refunded", "order.cancelled"} <= set(client.types(path))


def test_a_provider_that_fails_twice_is_tried_a_third_time(client: Client) -> None:
    """COMPLETED, the retries on the timeline, one charge for this order."""
    before = len(client.entries("tok_error_twice"))
    path = client.place(payment_method="tok_error_twice")
    client.follow(path, "COMPLETED")
    retries = [event["data"]["attempt"] for event in client.events(path) if event["type"] == "step.retrying"]
    assert sorted(retries) == [1, 2]
    assert len(client.entries("tok_error_twice")) == before + 1


def test_a_timeout_after_the_charge_charges_once(client: Client) -> None:
    """The provider charged and never answered: the order completes, the ledger shows one charge for it."""
    token = "tok_timeout_after_charge_once"
    before = len(client.entries(token))
    path = client.place(payment_method=token)
    order = client.follow(path, "COMPLETED")
    charges = client.entries(token)[before:]
    assert [charge["transaction_id"] for charge in charges] == [order["transaction_id"]]


def test_orders_are_listed_newest_first_in_pages(client: Client) -> None:
    """Pages of the size asked for, in order, without gaps."""
    paths = [client.place() for _ in range(3)]
    ids = [path.rpartition("/")[2] for path in reversed(paths)]
    first = client.get("/v1/orders?page=1&page_size=2")
    second = client.get("/v1/orders?page=2&page_size=2")
    assert (first["page"], first["page_size"], len(first["results"])) == (1, 2, 2)
    assert [order["id"] for order in first["results"] + second["results"]][:3] == ids
    assert first["count"] >= 3
    for path in paths:
        client.follow(path, "COMPLETED")


def test_an_unknown_order_is_not_found(client: Client) -> None:
    """404 with a problem document, for the order and its timeline, and for what is no id."""
    for path in (f"/v1/orders/{uuid.uuid4()}", f"/v1/orders/{uuid.uuid4()}/events", "/v1/orders/none"):
        answer = client.request("GET", path)
        assert answer.status == 404
        assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("customer_id", {"customer_id": REMOVED}),
        ("surprise", {"surprise": 1}),
        ("amount_cents", {"amount_cents": -1}),
        ("amount_cents", {"amount_cents": "2590"}),
        ("currency", {"currency": "XXY"}),
        ("items", {"items": []}),
        ("items.0.quantity", {"items__0__quantity": 0}),
        ("payment_method", {"payment_method": "4242424242424242"}),
        ("address.country", {"address__country": "Atlantis"}),
    ],
)
def test_a_bad_body_is_refused_and_nothing_is_stored(client: Client, field: str, changes: dict[str, Any]) -> None:
    """400 with a problem document that names the field; the number of orders stays."""
    before = client.get("/v1/orders?page_size=1")["count"]
    answer = client.request("POST", "/v1/orders", json=new_body(**changes))
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert field in [error["field"] for error in answer.json()["errors"]]
    assert client.get("/v1/orders?page_size=1")["count"] == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff"])
def test_a_body_that_is_no_object_is_refused(client: Client, body: bytes) -> None:
    """400 with a problem document; the number of orders stays."""
    before = client.get("/v1/orders?page_size=1")["count"]
    answer = client.request("POST", "/v1/orders", body=body, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert client.get("/v1/orders?page_size=1")["count"] == before


def test_a_correlation_id_is_taken_and_given_back(client: Client) -> None:
    """In the answer's header, in the order, and in that of a later request only if that brings it again."""
    answer = client.request("POST", "/v1/orders", json=new_body(), headers={"X-Correlation-ID": "shop-1"})
    assert answer.headers["X-Correlation-ID"] == "shop-1"
    path = answer.headers["Location"]
    assert client.follow(path, "COMPLETED")["correlation_id"] == "shop-1"
    assert client.request("GET", path).headers["X-Correlation-ID"] != "shop-1"


@pytest.mark.parametrize("given", [None, "x" * 65, "white space", "semi;colon"])
def test_a_correlation_id_is_made_where_none_is_usable(client: Client, given: str | None) -> None:
    """A new one for each request, on errors too."""
    headers = {"X-Correlation-ID": given} if given else {}
    made = [client.request("GET", path, headers=headers).headers["X-Correlation-ID"] for path in ("/v1/orders", "/x")]
    assert len({uuid.UUID(each) for each in made}) == 2


def test_the_api_is_healthy(client: Client) -> None:
    """GET /health/ says so."""
    assert client.get("/health/") == {"ok": True}


def test_many_orders_at_once_all_end(client: Client) -> None:
    """A burst of good, declined and unserved orders: each ends as it must, the ledger agrees to the cent."""
    fates = [("COMPLETED", {}), ("COMPLETED", {}), ("CANCELLED", {"address__area": "atlantis"})]
    token = new_token()
    placed = [(client.place(payment_method=token, **fate[1]), fate[0]) for fate in fates * (MANY // len(fates))]
    ends = [client.follow(path, status)["status"] for path, status in placed]
    assert client.net(token) == ends.count("COMPLETED") * 2590


def test_an_embedded_stack_that_is_killed_completes_its_orders_when_it_is_back(tmp_path: Path) -> None:
    """kill -9 in the middle of orders, start again on the same folder: all complete, each charged once."""
    token = new_token()
    with psp(tmp_path) as psp_url, embedded_process(tmp_path, psp_url) as process:
        with started(process, psp_url) as client:
            client.faults(latency_ms=500)
            paths = [client.place(payment_method=token) for _ in range(MANY)]
            assert poll(lambda: client.entries(token) != [], TIMEOUT)
            process.kill()
            assert 0 < len(client.entries(token)) < MANY, "none was in the middle"
            client.faults(latency_ms=0)
        with started(process, psp_url) as client:
            transactions = {client.follow(path, "COMPLETED")["transaction_id"] for path in paths}
            charges = client.entries(token)
    assert {charge["transaction_id"] for charge in charges} == transactions
    assert len(charges) == len(transactions) == MANY
