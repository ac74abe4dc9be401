"""The payment provider's ledger: one entry for each key, whatever is repeated, in whatever order."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.ledger import CONFLICT, Ledger

BODY = {"amount_cents": 500, "currency": "EUR", "payment_method": "tok_ok"}
REQUESTS = st.tuples(
    st.sampled_from(["charge", "refund"]),
    st.sampled_from(["a", "b", "c"]),  # keys
    st.integers(1, 3),  # amounts, so that a key comes with other bodies too
    st.sampled_from([None, "card_declined"]),
)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A ledger in memory."""
    with closing(Ledger()) as opened:
        yield opened


def charged(ledger: Ledger, key: str = "k", **changed: Any) -> str:
    """Charge, and return the transaction's id."""
    return str(ledger.charge(key, {**BODY, **changed}, decline=None).body["transaction_id"])


def test_a_repeated_charge_gets_the_stored_answer(ledger: Ledger) -> None:
    """The same key and body: the same transaction, one entry, whatever the order of the fields."""
    first = ledger.charge("k", BODY, decline=None)
    again = ledger.charge("k", dict(reversed(BODY.items())), decline="card_declined")
    assert again == first
    assert [(entry["seq"], entry["kind"], entry["idempotency_key"]) for entry in ledger.entries()] == [
        (1, "charge", "k")
    ]


def test_a_key_with_another_body_conflicts(ledger: Ledger) -> None:
    """The key belongs to its first body, also when that was declined or the other request is a refund."""
    transaction_id = charged(ledger)
    ledger.charge("no", BODY, decline="card_declined")
    assert ledger.charge("k", {**BODY, "amount_cents": 501}, decline=None) == CONFLICT
    assert ledger.charge("no", {**BODY, "amount_cents": 501}, decline=None) == CONFLICT
    assert ledger.refund("k", {"transaction_id": transaction_id}) == CONFLICT
    assert len(ledger.entries()) == 1


def test_a_decline_is_stored_and_moves_nothing(ledger: Ledger) -> None:
    """A retry of a declined key is declined for the same reason, and the ledger stays empty."""
    first = ledger.charge("k", BODY, decline="insufficient_funds")
    assert (first.status, first.body) == (402, {"detail": "PAYMENT_FAILED", "code": "insufficient_funds"})
    assert ledger.charge("k", BODY, decline=None) == first
    assert ledger.statement() == {"entries": [], "totals": {}}


def test_a_refund_gives_back_no_more_than_was_captured(ledger: Ledger) -> None:
    """Parts add up to the charge at most; without an amount it is the whole."""
    transaction_id = charged(ledger)
    part = {"transaction_id": transaction_id, "amount_cents": 300}
    first = ledger.refund("r1", part)
    assert first.body["amount_cents"] == 300
    assert ledger.refund("r1", part) == first
    assert ledger.refund("r2", part).body == {"detail": "ALREADY_REFUNDED"}
    assert ledger.refund("r3", {"transaction_id": transaction_id}).status == 409
    assert ledger.refund("r4", {**part, "amount_cents": 200}).status == 200
    assert ledger.totals() == {"EUR": {"captured_cents": 500, "refunded_cents": 500, "net_cents": 0}}


def test_a_refund_without_its_charge_is_not_found(ledger: Ledger) -> None:
    """And leaves the key free for a later try."""
    assert ledger.refund("r", {"transaction_id": "txn_unknown"}).status == 404
    assert ledger.refund("r", {"transaction_id": charged(ledger)}).status == 200


def test_lookup_tells_what_became_of_a_charge(ledger: Ledger) -> None:
    """Captured and declined charges show the same fields."""
    transaction_id = charged(ledger)
    ledger.refund("r", {"transaction_id": transaction_id, "amount_cents": 200})
    ledger.charge("no", BODY, decline="card_declined")
    amounts = {"amount_cents": 500, "currency": "EUR"}
    assert ledger.lookup("k") == {
        **amounts, "status": "captured", "transaction_id": transaction_id, "refunded_cents": 200, "code": None,
    }  # fmt: skip
    assert ledger.lookup("no") == {
        **amounts, "status": "declined", "transaction_id": None, "refunded_cents": 0, "code": "card_declined",
    }  # fmt: skip


@pytest.mark.parametrize("key", ["r", "unknown"])
def test_lookup_knows_charges_only(ledger: Ledger, key: str) -> None:
    """The key of a refund is no declined charge."""
    ledger.refund("r", {"transaction_id": charged(ledger)})
    assert ledger.lookup(key) is None


def test_entries_are_read_in_pages(ledger: Ledger) -> None:
    """In order of their sequence numbers; the totals are those of the whole ledger."""
    for number in range(5):
        charged(ledger, f"k{number}", currency="EUR" if number else "USD")
    page = ledger.statement(after=1, limit=2)
    assert [entry["seq"] for entry in page["entries"]] == [2, 3]
    assert page["totals"]["EUR"]["captured_cents"] == 2000
    assert page["totals"]["USD"]["net_cents"] == 500


def test_two_requests_at_once_make_one_entry(ledger: Ledger) -> None:
    """Threads that start together with one key all get the one transaction."""
    together = threading.Barrier(8)

    def charge(_: int) -> str:
        together.wait(10)
        return charged(ledger)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(charge, range(8)))) == 1
    assert len(ledger.entries()) == 1


@settings(max_examples=150, deadline=None)
@given(st.lists(REQUESTS, max_size=25))
def test_no_interleaving_of_repeats_makes_two_entries_for_a_key(requests: list[tuple[str, str, int, Any]]) -> None:
    """Any order of charges, refunds and repeats: at most one entry a key, and never more given back than taken."""
    with closing(Ledger()) as ledger:
        transaction_id = charged(ledger, "first", amount_cents=4)
        for kind, key, amount, decline in requests:
            if kind == "charge":
                ledger.charge(key, {**BODY, "amount_cents": amount}, decline=decline)
            else:
                ledger.refund(key, {"transaction_id": transaction_id, "amount_cents": amount})
        entries = ledger.entries()
        assert max(Counter(entry["idempotency_key"] for entry in entries).values()) == 1
        refunds = [each for each in entries if each["kind"] == "refund"]
        assert sum(each["amount_cents"] for each in refunds) <= 4
        assert ledger.totals()["EUR"]["refunded_cents"] == sum(each["amount_cents"] for each in refunds)
