"""The proof by faults, small, and the proof that its check would see a double charge."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.events import EventType
from shared.contracts.saga import Status
from stacks.chaos_check import CHARGED_TWICE, Evidence, judge
from stacks.chaos_faults import FAULTS
from stacks.local import ROOT
from workers.delivery.models import BookingStatus
from workers.payments.operations import operation_key

_ORDERS = 100
_TIMEOUT = 170  # seconds, a little more than the runs allow themselves


def test_no_order_is_lost_and_nobody_charged_twice_under_every_fault(tmp_path: Path) -> None:
    """100 orders, each fault once: every promise holds, with nothing but the dead letters put back by hand."""
    code, report = _run(tmp_path, "--small")
    assert {promise: broken for promise, broken in report["findings"].items() if broken} == {}
    assert code == 0
    figures = report["figures"]
    assert figures["answered 202"] == _ORDERS
    assert set(figures["by status"]) <= {Status.COMPLETED, Status.CANCELLED}
    assert figures["by status"][Status.COMPLETED] > 0
    assert figures["cancellations accepted"] == _ORDERS * 5 // 100
    assert figures["steps retried"] > 0
    assert report["faults"] == {fault.name: 1 for fault in FAULTS}
    assert not any("error" in call for call in report["requeues"])


def test_without_the_guards_the_same_check_reports_double_charges(tmp_path: Path) -> None:
    """A payments worker without row and key charges twice, and the check says so."""
    code, report = _run(tmp_path, "--negative-control")
    assert report["findings"][CHARGED_TWICE]
    assert code == 0


def test_orders_that_ended_well_break_no_promise() -> None:
    """What a faultless stack leaves behind gives no finding."""
    assert _broken(_EVIDENCE) == set()


def _without_order(evidence: Evidence) -> Evidence:
    return replace(evidence, accepted=[*evidence.accepted, "lost"])


def _pending(evidence: Evidence) -> Evidence:
    return _with_status(evidence, "good", Status.PENDING)


def _charged_again(evidence: Evidence) -> Evidence:
    return replace(evidence, ledger=[*evidence.ledger, _entry("charge", "txn_3", 1000, key="another-key")])


def _uncharged(evidence: Evidence) -> Evidence:
    return replace(evidence, ledger=[entry for entry in evidence.ledger if entry["amount_cents"] != 1000])


def _not_refunded(evidence: Evidence) -> Evidence:
    return replace(evidence, ledger=[entry for entry in evidence.ledger if entry["kind"] != "refund"])


def _foreign_charge(evidence: Evidence) -> Evidence:
    return replace(evidence, ledger=[*evidence.ledger, _entry("charge", "txn_4", 777, key="charge-nobody")])


def _uncancelled(evidence: Evidence) -> Evidence:
    return replace(evidence, cancelled=["good"])


def _booked(evidence: Evidence) -> Evidence:
    bookings = {**evidence.bookings, "undone": (BookingStatus.ASSIGNED, "ada")}
    return replace(evidence, bookings=bookings, open_bookings={"ada": 2})


def _unbooked(evidence: Evidence) -> Evidence:
    return replace(evidence, bookings={}, open_bookings={"ada": 0})


def _miscounted(evidence: Evidence) -> Evidence:
    return replace(evidence, open_bookings={"ada": 2})


def _told_nothing(evidence: Evidence) -> Evidence:
    return replace(evidence, told={**evidence.told, "undone": []})


def _told_wrong(evidence: Evidence) -> Evidence:
    return replace(evidence, told={**evidence.told, "good": ["completed", "cancelled"]})


@pytest.mark.parametrize(
    ("fault", "promises"),
    [
        (_without_order, {"accepted orders that are lost"}),
        (_pending, {"orders that did not end"}),
        (lambda evidence: replace(evidence, unsettled=["good"]), {"orders with something left to do"}),
        (_charged_again, {CHARGED_TWICE, "timelines that the ledger contradicts"}),
        (_uncharged, {"COMPLETED orders that are not paid", "timelines that the ledger contradicts"}),
        (_not_refunded, {"CANCELLED orders whose money was kept", "timelines that the ledger contradicts"}),
        (_foreign_charge, {"ledger entries of no order"}),
        (_uncancelled, {"accepted cancellations not carried out"}),
        (_booked, {"couriers booked for CANCELLED orders"}),
        (_unbooked, {"COMPLETED orders without a courier"}),
        (_miscounted, {"couriers whose open bookings are miscounted"}),
        (_told_nothing, {"customers not told once how it ended"}),
        (_told_wrong, {"customers not told once how it ended"}),
        (lambda evidence: replace(evidence, dead_letters=["payments.dlq: a letter"]), {"dead letters left"}),
        (lambda evidence: replace(evidence, restless=["payments: 1"]), {"queues that did not come to rest"}),
        (lambda evidence: replace(evidence, ended=["beat: why"]), {"processes that ended by themselves"}),
    ],
)
def test_each_broken_promise_is_found(fault: Callable[[Evidence], Evidence], promises: set[str]) -> None:
    """One thing wrong in the evidence gives the finding that names it, and no other."""
    assert _broken(fault(_EVIDENCE)) == promises


def _run(folder: Path, size: str) -> tuple[int, dict[str, Any]]:
    result = folder / "result.json"
    command = [sys.executable, "-m", "stacks.chaos", size, "--json", str(result)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
    assert result.exists(), f"the run gave no result:\n{done.stdout}\n{done.stderr}"
    return done.returncode, json.loads(result.read_text())


def _broken(evidence: Evidence) -> set[str]:
    return {promise for promise, broken in judge(evidence).items() if broken}


def _with_status(evidence: Evidence, order_id: str, status: Status) -> Evidence:
    return replace(evidence, orders={**evidence.orders, order_id: {**evidence.orders[order_id], "status": status}})


def _order(order_id: str, status: Status, amount_cents: int) -> dict[str, Any]:
    return {"id": order_id, "status": str(status), "amount_cents": amount_cents, "currency": "EUR"}


def _entry(kind: str, transaction_id: str, amount_cents: int, *, key: str) -> dict[str, Any]:
    sum_ = {"amount_cents": amount_cents, "currency": "EUR"}
    return {"kind": kind, "idempotency_key": key, "transaction_id": transaction_id, **sum_}


def _event(event_type: EventType, **data: Any) -> dict[str, Any]:
    return {"type": str(event_type), "time": datetime.now(UTC), "data": data}


_EVIDENCE = Evidence(
    orders={"good": _order("good", Status.COMPLETED, 1000), "undone": _order("undone", Status.CANCELLED, 1001)},
    accepted=["good", "undone"],
    cancelled=["undone"],
    ledger=[
        _entry("charge", "txn_1", 1000, key=operation_key("charge", "good")),
        _entry("charge", "txn_2", 1001, key=operation_key("charge", "undone")),
        _entry("refund", "txn_2", 1001, key=operation_key("refund", "undone")),
    ],
    events={
        "good": [
            _event(EventType.PAYMENT_CAPTURED, amount_cents=1000),
            _event(EventType.CUSTOMER_NOTIFIED, kind="completed"),
        ],
        "undone": [
            _event(EventType.PAYMENT_CAPTURED, amount_cents=1001),
            _event(EventType.PAYMENT_REFUNDED, amount_cents=1001),
            _event(EventType.CUSTOMER_NOTIFIED, kind="cancelled"),
        ],
    },
    bookings={"good": (BookingStatus.ASSIGNED, "ada"), "undone": (BookingStatus.RELEASED, "ada")},
    open_bookings={"ada": 1},
    told={"good": ["completed"], "undone": ["cancelled"]},
)
