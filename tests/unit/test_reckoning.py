"""The reckoning: every way in which orders and the provider's ledger can disagree is found, and nothing else."""

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stacks.reckoning import Money, OrderAccount, reckon
from workers.payments.operations import operation_key

PRICE = 2590
CHARGED, RETURNED, UNMOVED = Money(PRICE, 0), Money(PRICE, PRICE), Money()


def account(status: str, said: Money, **changed: Any) -> OrderAccount:
    """Return a new order of 25.90 EUR that says that ``said`` was moved."""
    fields = {"id": str(uuid.uuid4()), "amount_cents": PRICE, "currency": "EUR", **changed}
    return OrderAccount(status=status, said=said, **fields)


def charge(order_id: str, **changed: Any) -> dict[str, Any]:
    """Return the ledger's entry for an order's charge."""
    entry = {"kind": "charge", "idempotency_key": operation_key("charge", order_id), "amount_cents": PRICE}
    return {**entry, "currency": "EUR", "transaction_id": f"txn_{order_id}", **changed}


def refund(order_id: str, **changed: Any) -> dict[str, Any]:
    """Return the ledger's entry for its refund."""
    return charge(order_id, **{"kind": "refund", "idempotency_key": operation_key("refund", order_id), **changed})


def broken_rules(orders: list[OrderAccount], entries: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the rules that are broken, with what breaks them."""
    result = reckon(orders, entries)
    rules = set(result.__slots__) - {"ledger", "orders"}
    return {rule: broken for rule in rules if (broken := getattr(result, rule))}


def test_orders_that_ended_as_they_should_differ_in_nothing() -> None:
    """One of each good end, with the totals of both sides."""
    paid, undone = account("COMPLETED", CHARGED), account("CANCELLED", RETURNED)
    free = [account("CANCELLED", UNMOVED), account("AWAITING_PAYMENT", UNMOVED)]
    waiting = account("AWAITING_DISPATCH", CHARGED)
    entries = [charge(paid.id), charge(undone.id), refund(undone.id), charge(waiting.id)]
    result = reckon([paid, undone, waiting, *free], entries)
    assert result.differences == []
    assert result.ledger == result.orders == {"EUR": Money(3 * PRICE, PRICE)}


def test_a_second_charge_of_an_order_is_found() -> None:
    """Under the same operation key, as a provider without idempotency would do it."""
    order = account("COMPLETED", CHARGED)
    entries = [charge(order.id), charge(order.id, transaction_id="txn_2")]
    assert broken_rules([order], entries) == {"double_charged": [order.id], "misstated": [order.id]}


def test_a_charge_that_no_order_knows_is_found() -> None:
    """Under a key of nobody; the line says how much."""
    order = account("COMPLETED", CHARGED)
    stray = charge("nobody", idempotency_key="stray")
    assert broken_rules([order], [charge(order.id), stray]) == {
        "unaccounted": ["charge of 2590 EUR (cents) under stray"]
    }


def test_a_refund_of_no_known_charge_is_found() -> None:
    """What goes back belongs to the charge that it names."""
    order = account("COMPLETED", CHARGED)
    entries = [charge(order.id), refund("nobody")]
    assert list(broken_rules([order], entries)) == ["unaccounted"]


@pytest.mark.parametrize("moved", [[], [charge, refund]])
def test_a_completed_order_without_its_money_is_found(moved: list[Any]) -> None:
    """Never charged, or given back."""
    order = account("COMPLETED", CHARGED)
    found = broken_rules([order], [each(order.id) for each in moved])
    assert found == {"uncharged_completed": [order.id], "misstated": [order.id]}


@pytest.mark.parametrize("wrong", [{"amount_cents": PRICE + 1}, {"currency": "CHF"}])
def test_a_charge_of_another_amount_or_currency_is_found(wrong: dict[str, Any]) -> None:
    """The price is the order's, to the cent."""
    order = account("COMPLETED", CHARGED)
    result = reckon([order], [charge(order.id, **wrong)])
    assert result.wrongly_charged == [order.id]
    assert result.differences


@pytest.mark.parametrize("returned", [None, PRICE - 1])
def test_money_kept_for_a_cancelled_order_is_found(returned: int | None) -> None:
    """Not refunded at all, or not wholly."""
    order = account("CANCELLED", RETURNED)
    entries = [charge(order.id), *([refund(order.id, amount_cents=returned)] if returned else [])]
    assert broken_rules([order], entries) == {"charged_cancelled": [order.id], "misstated": [order.id]}


def test_a_cancelled_order_is_even_when_the_bank_took_the_money_back() -> None:
    """A reversal returns money as a refund does, under a key that is not ours."""
    order = account("CANCELLED", RETURNED)
    reversal = refund(order.id, kind="reversal", idempotency_key="reversal-1")
    assert broken_rules([order], [charge(order.id), reversal]) == {}


def test_money_taken_for_an_order_that_waits_for_its_payment_is_found() -> None:
    """It may be an answer that is still missing, but an operator has to know."""
    order = account("AWAITING_PAYMENT", UNMOVED)
    assert broken_rules([order], [charge(order.id)]) == {"charged_parked": [order.id]}


@pytest.mark.parametrize("status", ["PENDING", "PAID", "CANCELLING"])
def test_an_order_that_still_moves_is_found(status: str) -> None:
    """It hangs; its money is not judged."""
    order = account(status, CHARGED)
    assert broken_rules([order], [charge(order.id)]) == {"unsettled": [order.id]}


def test_a_timeline_that_tells_of_other_money_is_found() -> None:
    """The order's end is right, its story is not."""
    order = account("CANCELLED", UNMOVED)
    result = reckon([order], [charge(order.id), refund(order.id)])
    assert result.misstated == [order.id]
    assert result.differences[-1] == (
        "EUR: the orders say 0 captured, 0 refunded; the ledger says 2590 captured, 2590 refunded (cents)"
    )


def test_an_account_is_read_from_the_api_s_order_and_timeline() -> None:
    """Captured, refunded and reversed amounts are summed; other events' amounts are not money moved."""
    order = {"id": "1", "status": "CANCELLED", "amount_cents": 5, "currency": "CHF", "courier": None}
    amounts = {"order.placed": 5, "payment.captured": 5, "payment.refunded": 2, "payment.reversed": 3}
    events = [{"type": name, "data": {"amount_cents": cents}} for name, cents in amounts.items()]
    events.append({"type": "customer.notified", "data": {"kind": "cancelled"}})
    assert OrderAccount.from_api(order, events) == OrderAccount("1", "CANCELLED", 5, "CHF", Money(5, 5))


@given(st.lists(st.tuples(st.sampled_from(["COMPLETED", "CANCELLED"]), st.integers(1, 10**9))), st.randoms())
def test_the_order_of_entries_makes_no_difference(ends: list[tuple[str, int]], dice: Any) -> None:
    """Good orders stay good however the ledger's entries and the orders are shuffled."""
    orders, entries = [], []
    for status, cents in ends:
        said = Money(cents, cents if status == "CANCELLED" else 0)
        orders.append(account(status, said, amount_cents=cents))
        moves = [charge, refund] if status == "CANCELLED" else [charge]
        entries += [move(orders[-1].id, amount_cents=cents) for move in moves]
    dice.shuffle(orders)
    dice.shuffle(entries)
    assert reckon(orders, entries).differences == []
