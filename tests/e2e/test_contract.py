"""What a client that waits is told, on both stacks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import Client, new_token
from tests.support import new_body

WAIT = {"Prefer": "wait=20"}


def place(client: Client, path: str = "/v1/orders", headers: dict[str, str] = WAIT, **changes: Any) -> Any:
    """Place an order and wait."""
    return client.request("POST", path, json=new_body(**changes), headers=headers, timeout=40)


def test_who_waits_gets_the_completed_order(client: Client) -> None:
    """201 with the transaction's id, and the preference that was applied."""
    answer = place(client)
    order = answer.json()
    assert (answer.status, order["status"], answer.headers["Preference-Applied"]) == (201, "COMPLETED", "wait=20")
    assert order["transaction_id"]
    assert client.get(answer.headers["Location"])["id"] == order["id"]


def test_who_waits_for_a_declined_card_is_told(client: Client) -> None:
    """402 PAYMENT_FAILED, with the order."""
    answer = place(client, payment_method="tok_declined")
    problem = answer.json()
    assert (answer.status, problem["detail"], problem["order"]["failure"]) == (402, "PAYMENT_FAILED", "PAYMENT_FAILED")
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_who_waits_for_what_nobody_delivers_is_told(client: Client) -> None:
    """422 with the failure's code."""
    answer = place(client, address__area="atlantis")
    assert (answer.status, answer.json()["detail"]) == (422, "NO_COURIER")


def test_who_does_not_wait_long_enough_gets_the_order_as_it_is(client: Client) -> None:
    """202: a provider that fails twice takes seconds."""
    answer = place(client, headers={"Prefer": "wait=1"}, payment_method="tok_error_twice")
    assert (answer.status, answer.json()["status"], answer.headers["Preference-Applied"]) == (202, "PENDING", "wait=1")
    client.follow(answer.headers["Location"], "COMPLETED")


def test_the_facade_waits_by_itself(client: Client) -> None:
    """An earlier gateway's body and words: 201, CONFIRMED, the transaction's id."""
    body = {"items": [{"sku": "pizza", "quantity": 1}], "amount_cents": 990, "currency": "EUR"}
    answer = client.request("POST", "/api/orders/", json=body, timeout=40)
    order = answer.json()
    assert (answer.status, order["status"]) == (201, "CONFIRMED")
    path = answer.headers["Location"]
    assert path == f"/api/orders/{order['id']}/"
    assert client.get(path)["transaction_id"] == order["transaction_id"]
    assert order["id"] in [each["id"] for each in client.get("/api/orders/?status=CONFIRMED")["results"]]
    assert client.get(f"/v1/orders/{order['id']}")["status"] == "COMPLETED"
    assert "payment.captured" in [event["type"] for event in client.get(f"{path}events/")["results"]]


def test_the_facade_refuses_in_the_same_words(client: Client) -> None:
    """402 with its code; 400 for what is missing."""
    assert place(client, "/api/orders/", {}, payment_method="tok_declined").status == 402
    answer = client.request("POST", "/api/orders/", json={"items": []})
    assert (answer.status, {each["field"] for each in answer.json()["errors"]}) == (
        400,
        {"items", "amount_cents", "currency"},
    )


def test_the_facade_need_not_be_waited_for(client: Client) -> None:
    """202 at once with ``respond-async``; cancelled through it as well."""
    answer = place(client, "/api/orders/", {"Prefer": "respond-async"})
    assert (answer.status, answer.headers["Preference-Applied"]) == (202, "respond-async")
    path = answer.headers["Location"]
    assert client.request("POST", f"{path}cancel/").status == 202
    client.follow(path.replace("/api/", "/v1/").rstrip("/"), "CANCELLED")


@pytest.mark.parametrize("headers", [{}, {"Prefer": "wait=20"}])
def test_fifty_requests_with_one_key_make_one_order(client: Client, headers: dict[str, str]) -> None:
    """At the same moment, over every process of the API: one is placed, each answer is about it or says "later"."""
    token = new_token()
    headers = {"Idempotency-Key": token, **headers}

    def send(_number: int) -> Any:
        return place(client, headers=headers, payment_method=token)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(send, range(50)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) <= {201, 202, 200, 409}
    assert len([status for status in statuses if status in (201, 202)]) == 1
    details = {answer.json()["detail"] for answer in answers if answer.status == 409}
    assert details <= {"IDEMPOTENCY_IN_PROGRESS"}
    assert len({answer.json()["id"] for answer in answers if answer.status < 300}) == 1
    (path,) = {answer.headers["Location"] for answer in answers if answer.status in (201, 202)}
    client.follow(path, "COMPLETED")
    assert [entry["kind"] for entry in client.entries(token)] == ["charge"]
    again = send(0)
    assert (again.status, again.headers["Idempotent-Replay"]) == (200, "true")
