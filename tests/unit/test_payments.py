"""Charge and refund: however attempts interleave and fail, at most one capture, and none for a cancelled order."""

import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared.contracts.waybill import Waybill
from shared.database import get_database
from shared.errors import Declined, Transient, Waiting
from shared.messaging.step import Outcome
from tests.conftest import UseSettings
from tests.support import new_waybill
from workers.payments import operations
from workers.payments.gateways import Charge
from workers.payments.gateways.memory import MemoryGateway
from workers.payments.models import Payment, PaymentStatus

CHARGES = ["captured", "declined", "unknown_charged", "unknown_not_charged", "unknown_charged_later"]
REFUNDS = ["refunded", "unknown_refunded", "unknown_not_refunded"]


class ScriptedGateway:
    """A provider that answers as told, once for each key, with a ledger; the truth about money in these tests."""

    def __init__(self) -> None:
        self.outcome = "captured"
        self.answers: dict[str, Charge] = {}
        self.entries_: list[tuple[str, str]] = []
        self.refunded: set[str] = set()
        self.on_the_way: list[str] = []
        self.during: Callable[[], Any] = lambda: None

    def charge(self, operation_key: str, amount_cents: int, currency: str, payment_method: str) -> Charge:
        """Charge, or not, and say so, or not; ``during`` happens while the caller waits."""
        outcome, during, self.during = self.outcome, self.during, lambda: None
        during()
        if outcome == "unknown_not_charged":
            raise Transient("timeout")
        if outcome == "unknown_charged_later":
            self.on_the_way.append(operation_key)
            raise Transient("timeout")
        answer = self._land(operation_key, declined=outcome == "declined")
        if outcome == "unknown_charged":
            raise Transient("timeout")
        return answer

    def refund(self, operation_key: str, transaction_id: str) -> None:
        """Give back, or not, and say so, or not."""
        if self.outcome == "unknown_not_refunded":
            raise Transient("timeout")
        if operation_key not in self.refunded:
            self.refunded.add(operation_key)
            self.entries_.append(("refund", transaction_id))
        if self.outcome == "unknown_refunded":
            raise Transient("timeout")

    def lookup(self, operation_key: str) -> Charge | None:
        """Say what became of a charge."""
        return self.answers.get(operation_key)

    def entries(self, after: int, limit: int) -> Any:
        """Nobody reads the ledger here."""
        raise NotImplementedError

    def pass_time(self) -> None:
        """What was on the way arrives."""
        for key in self.on_the_way:
            self._land(key, declined=False)
        self.on_the_way.clear()

    @property
    def counted(self) -> Counter[str]:
        """How many charges and refunds there were."""
        return Counter(kind for kind, _ in self.entries_)

    def _land(self, key: str, *, declined: bool) -> Charge:
        if key not in self.answers:
            txn = f"txn_{uuid.uuid4().hex}"
            self.answers[key] = Charge(None, "PAYMENT_FAILED") if declined else Charge(txn)
            if not declined:
                self.entries_.append(("charge", txn))
        return self.answers[key]


@pytest.fixture
def gateway(house: UseSettings, monkeypatch: pytest.MonkeyPatch) -> ScriptedGateway:
    """The provider of this test."""
    gateway = ScriptedGateway()
    monkeypatch.setattr(operations, "payment_gateway", lambda: gateway)
    return gateway


def pass_time(gateway: ScriptedGateway) -> None:
    """Let more time go by than any call can take."""
    gateway.pass_time()
    with get_database("payments").transaction() as session:
        for payment in session.query(Payment).filter(Payment.attempted_at.is_not(None)):
            payment.attempted_at = datetime.now(UTC) - timedelta(hours=1)


def attempt(operation: Callable[[Waybill], Outcome], waybill: Waybill) -> Outcome | Exception:
    """Run an operation as a step does: what it raises is an answer."""
    try:
        return operation(waybill)
    except (Declined, Transient) as error:
        return error


def until_settled(operation: Callable[[Waybill], Outcome], waybill: Waybill, gateway: ScriptedGateway) -> Any:
    """Retry an operation as a step does, the provider working again."""
    gateway.outcome = "captured"
    for _ in range(5):
        answer = attempt(operation, waybill)
        if not isinstance(answer, Transient):
            return answer
        pass_time(gateway)
    raise AssertionError(f"still {answer!r}")


def stored(waybill: Waybill) -> Payment:
    """Return the row as it is."""
    with get_database("payments").transaction() as session:
        return session.get_one(Payment, waybill.order_id)


nested = st.none() | st.sampled_from(["charge", "refund"])
actions = st.one_of(
    st.tuples(st.just("charge"), st.sampled_from(CHARGES), nested),
    st.tuples(st.just("refund"), st.sampled_from(REFUNDS), st.none()),
    st.tuples(st.just("time"), st.none(), st.none()),
)
OPERATIONS = {"charge": operations.charge, "refund": operations.refund}


@hypothesis_settings(max_examples=80)
@given(st.lists(actions, min_size=1, max_size=6))
def test_any_interleaving_captures_once_and_a_cancelled_order_nets_zero(
    house: UseSettings, monkeypatch_context: Any, steps: list[tuple[str, str, str | None]]
) -> None:
    """Attempts that fail in any way, in any order, one within another: one capture, given back if cancelled."""
    gateway, waybill = ScriptedGateway(), new_waybill()
    cancelled = False
    with monkeypatch_context(gateway):
        for action, outcome, within in steps:
            if action == "time":
                pass_time(gateway)
                continue
            cancelled |= "refund" in (action, within)
            gateway.outcome = outcome
            if within:
                gateway.during = lambda within=within: attempt(OPERATIONS[within], waybill)
            attempt(OPERATIONS[action], waybill)
            gateway.during = lambda: None
            assert gateway.counted["charge"] <= 1
        if cancelled:
            until_settled(operations.refund, waybill, gateway)
            assert isinstance(until_settled(operations.charge, waybill, gateway), Declined)
            until_settled(operations.refund, waybill, gateway)
        else:
            until_settled(operations.charge, waybill, gateway)
        pass_time(gateway)
    counted = gateway.counted
    assert counted["charge"] <= 1
    assert counted["refund"] == (counted["charge"] if cancelled else 0)
    status = stored(waybill).status
    if cancelled:
        assert status in ("REFUNDED", "VOIDED", "DECLINED")
        assert (status == "REFUNDED") == (counted["charge"] == 1)
    else:
        assert status == ("CAPTURED" if counted["charge"] else "DECLINED")


@pytest.fixture
def monkeypatch_context() -> Any:
    """Install a gateway for a block; a fixture's own would outlive hypothesis's examples."""

    def install(gateway: ScriptedGateway) -> Any:
        patch = pytest.MonkeyPatch.context()

        class Installed:
            def __enter__(self) -> None:
                patch.__enter__().setattr(operations, "payment_gateway", lambda: gateway)

            def __exit__(self, *error: Any) -> None:
                patch.__exit__(*error)

        return Installed()

    return install


def test_a_charge_is_captured_once_however_often_it_runs(gateway: ScriptedGateway) -> None:
    """The same outcome each time, one line in the ledger."""
    waybill = new_waybill()
    first, again = operations.charge(waybill), operations.charge(waybill)
    assert first == again
    assert first.stamp == {"transaction_id": stored(waybill).transaction_id}
    assert (first.data["amount_cents"], first.data["currency"]) == (2590, "EUR")
    assert gateway.entries_ == [("charge", first.stamp["transaction_id"])]


def test_a_declined_charge_stays_declined(gateway: ScriptedGateway) -> None:
    """The provider is not asked again, also when it would say yes now."""
    waybill = new_waybill()
    for gateway.outcome in ("declined", "captured"):
        with pytest.raises(Declined) as caught:
            operations.charge(waybill)
        assert (caught.value.code, caught.value.event) == ("PAYMENT_FAILED", "payment.declined")
    assert gateway.entries_ == []


@pytest.mark.parametrize("outcome", ["unknown_charged", "unknown_not_charged"])
def test_a_timeout_is_no_decline(gateway: ScriptedGateway, outcome: str) -> None:
    """The payment stays UNKNOWN; the retry settles it, with one capture."""
    waybill = new_waybill()
    gateway.outcome = outcome
    with pytest.raises(Transient):
        operations.charge(waybill)
    assert stored(waybill).status == PaymentStatus.UNKNOWN
    gateway.outcome = "captured"
    assert operations.charge(waybill).event == "payment.captured"
    assert gateway.counted == {"charge": 1}


def test_the_attempt_is_stored_before_the_provider_is_asked(gateway: ScriptedGateway) -> None:
    """Whatever dies during the call leaves a row that says "ask the provider"; no lock is held meanwhile."""
    waybill, seen = new_waybill(), []

    def look() -> None:
        payment = stored(waybill)
        seen.append((payment.status, payment.operation_key, payment.attempted_at is not None))

    gateway.during = look
    operations.charge(waybill)
    assert seen == [(PaymentStatus.UNKNOWN, operations.operation_key("charge", waybill.order_id), True)]


def test_a_refund_gives_back_what_was_captured(gateway: ScriptedGateway) -> None:
    """Once, however often it runs; the charge is a no-op afterwards."""
    waybill = new_waybill()
    captured = operations.charge(waybill)
    first, again = operations.refund(waybill), operations.refund(waybill)
    assert first == again
    assert (first.event, first.data["amount_cents"], first.data["currency"]) == ("payment.refunded", 2590, "EUR")
    assert gateway.entries_ == [("charge", captured.stamp["transaction_id"]), ("refund", first.data["transaction_id"])]
    with pytest.raises(Declined) as caught:
        operations.charge(waybill)
    assert (caught.value.code, caught.value.event) == ("CANCELLED", None)


def test_a_refund_without_a_charge_leaves_a_tombstone(gateway: ScriptedGateway) -> None:
    """A charge that comes late does not ask the provider."""
    waybill = new_waybill()
    assert operations.refund(waybill) == Outcome()
    assert stored(waybill).status == PaymentStatus.VOIDED
    with pytest.raises(Declined):
        operations.charge(waybill)
    assert gateway.entries_ == []


def test_a_refund_waits_for_a_charge_under_way(house: UseSettings, gateway: ScriptedGateway) -> None:
    """Its outcome cannot be looked up yet; until then the way back waits, and the charge ends in a no."""
    house(gateway_timeout=3.0)
    waybill, met = new_waybill(), []
    gateway.during = lambda: met.append(attempt(operations.refund, waybill))
    with pytest.raises(Declined, match="CANCELLED"):
        operations.charge(waybill)
    (waiting,) = met
    assert isinstance(waiting, Waiting)
    assert 5 < waiting.retry_after <= 7
    assert operations.refund(waybill).event == "payment.refunded"
    assert gateway.counted == {"charge": 1, "refund": 1}


def test_a_refund_settles_an_attempt_nobody_learned_the_outcome_of(gateway: ScriptedGateway) -> None:
    """Once a call must have ended the provider is asked: charged is given back, unseen is voided."""
    for outcome, refunds in (("unknown_charged", 1), ("unknown_not_charged", 0)):
        waybill, gateway.outcome = new_waybill(), outcome
        attempt(operations.charge, waybill)
        assert isinstance(attempt(operations.refund, waybill), Waiting)
        pass_time(gateway)
        before = gateway.counted["refund"]
        until_settled(operations.refund, waybill, gateway)
        assert gateway.counted["refund"] - before == refunds


def test_a_cancelled_charge_waits_for_its_earlier_attempt_too(gateway: ScriptedGateway) -> None:
    """A retry that finds the order cancelled must not conclude "never charged" while its first call may still land."""
    waybill, gateway.outcome = new_waybill(), "unknown_charged_later"
    attempt(operations.charge, waybill)
    assert isinstance(attempt(operations.refund, waybill), Waiting)
    assert isinstance(attempt(operations.charge, waybill), Waiting)
    pass_time(gateway)
    assert until_settled(operations.refund, waybill, gateway).event == "payment.refunded"


def test_a_capture_learned_of_after_everything_was_over_is_given_back(gateway: ScriptedGateway) -> None:
    """A call that took longer than any call can: the payment was voided meanwhile, the charge turns round, refunded."""
    waybill = new_waybill()

    def long_after() -> None:
        pass_time(gateway)
        assert operations.refund(waybill) == Outcome()
        assert stored(waybill).status == PaymentStatus.VOIDED

    gateway.during = long_after
    with pytest.raises(Declined, match="CANCELLED"):
        operations.charge(waybill)
    assert operations.refund(waybill).event == "payment.refunded"
    assert gateway.counted == {"charge": 1, "refund": 1}


def test_keys_differ_by_order_and_operation_and_never_change() -> None:
    """The provider knows an operation by its key: it is the same in every release."""
    first, second = new_waybill().order_id, new_waybill().order_id
    keys = {operations.operation_key(name, order) for name in ("charge", "refund") for order in (first, second)}
    assert len(keys) == 4
    order = "11111111-1111-4111-8111-111111111111"
    assert operations.operation_key("charge", order) == "charge-f08ebf10-c5f5-5b5d-adf0-c26c9816b571"


@pytest.mark.parametrize("token", ["tok_declined", "tok_insufficient_funds", "tok_ok"])
def test_the_memory_gateway_serves_the_operations(
    house: UseSettings, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """Charge and refund through the adapter of the eager tests."""
    gateway, waybill = MemoryGateway(), new_waybill(payment_method=token)
    monkeypatch.setattr(operations, "payment_gateway", lambda: gateway)
    answer = attempt(operations.charge, waybill)
    assert isinstance(answer, Outcome if token == "tok_ok" else Declined)
    operations.refund(waybill)
    assert len(gateway.refunds) == (token == "tok_ok")
