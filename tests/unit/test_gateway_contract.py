"""Every payment gateway keeps the same contract: the port's, written once and run on each adapter."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import Transient
from simulators.ledger import Ledger
from simulators.psp import PspServer, serve
from stacks.processes import free_port
from tests.conftest import UseSettings
from workers.payments.gateways import PaymentGateway, payment_gateway
from workers.payments.gateways.memory import MemoryGateway
from workers.payments.gateways.simulator import SimulatorGateway


@pytest.fixture
def psp(tmp_path: Path) -> Iterator[PspServer]:
    """The simulated provider over real HTTP."""
    with serve(Ledger(tmp_path / "psp.db")) as server:
        yield server


@pytest.fixture
def simulator(psp: PspServer) -> Iterator[SimulatorGateway]:
    """The adapter to it, with a short patience."""
    gateway = SimulatorGateway(psp.url, timeout=2.0, connections=2)
    yield gateway
    gateway._http.clear()


@pytest.fixture(params=["memory", "simulator"])
def gateway(request: pytest.FixtureRequest) -> PaymentGateway:
    """Each adapter in turn."""
    return MemoryGateway() if request.param == "memory" else request.getfixturevalue("simulator")


def kinds(gateway: PaymentGateway) -> list[tuple[str, str, str]]:
    """Return the ledger without its numbers."""
    return [(entry.kind, entry.operation_key, entry.transaction_id) for entry in gateway.entries(0, 100)]


def test_a_charge_moves_money_once_for_each_key(gateway: PaymentGateway) -> None:
    """The same key, the same answer, one line in the ledger; another key, another charge."""
    first, again = (gateway.charge("charge-1", 2590, "EUR", "tok_ok") for _ in range(2))
    other = gateway.charge("charge-2", 2590, "EUR", "tok_ok")
    assert first == again
    assert first.transaction_id
    assert first.failure_code is None
    assert other.transaction_id != first.transaction_id
    assert kinds(gateway) == [
        ("charge", "charge-1", first.transaction_id),
        ("charge", "charge-2", other.transaction_id),
    ]


@pytest.mark.parametrize("token", ["tok_declined", "tok_insufficient_funds"])
def test_a_declined_charge_moves_no_money(gateway: PaymentGateway, token: str) -> None:
    """It has a code and no transaction, each time."""
    first, again = (gateway.charge("charge-1", 2590, "EUR", token) for _ in range(2))
    assert first == again == gateway.lookup("charge-1")
    assert (first.transaction_id, first.failure_code) == (None, "PAYMENT_FAILED")
    assert kinds(gateway) == []


def test_a_lookup_says_what_became_of_a_charge(gateway: PaymentGateway) -> None:
    """None for a key the provider never saw, else what the charge was answered."""
    assert gateway.lookup("charge-1") is None
    answer = gateway.charge("charge-1", 2590, "EUR", "tok_ok")
    assert gateway.lookup("charge-1") == answer


def test_a_refund_gives_back_once_for_each_key(gateway: PaymentGateway) -> None:
    """The charge stays what it was; the ledger shows one refund."""
    charge = gateway.charge("charge-1", 2590, "EUR", "tok_ok")
    assert charge.transaction_id
    for _ in range(2):
        gateway.refund("refund-1", charge.transaction_id)
    assert gateway.lookup("charge-1") == charge
    assert kinds(gateway) == [
        ("charge", "charge-1", charge.transaction_id),
        ("refund", "refund-1", charge.transaction_id),
    ]


def test_the_ledger_is_read_on_from_where_one_stopped(gateway: PaymentGateway) -> None:
    """Oldest first, numbered upwards, in pages."""
    for number in range(5):
        gateway.charge(f"charge-{number}", 100, "EUR", "tok_ok")
    first = gateway.entries(0, 2)
    rest = gateway.entries(first[-1].seq, 10)
    assert [entry.operation_key for entry in (*first, *rest)] == [f"charge-{number}" for number in range(5)]
    assert gateway.entries(rest[-1].seq, 10) == []


def test_a_refund_does_not_renumber_the_ledger(gateway: PaymentGateway) -> None:
    """A line keeps its number whatever follows, or a reader would miss lines."""
    charge = gateway.charge("charge-1", 100, "EUR", "tok_ok")
    assert charge.transaction_id
    gateway.refund("refund-1", charge.transaction_id)
    before = list(gateway.entries(0, 10))
    gateway.charge("charge-2", 100, "EUR", "tok_ok")
    assert list(gateway.entries(0, 10))[:2] == before
    assert [entry.operation_key for entry in gateway.entries(before[-1].seq, 10)] == ["charge-2"]


CALLS = {
    "charge": ("charge-1", 100, "EUR", "tok_ok"),
    "refund": ("refund-1", "txn_1"),
    "lookup": ("charge-1",),
    "entries": (0, 10),
}


def is_transient(gateway: SimulatorGateway, call: str) -> bool:
    """Say whether a call raises ``Transient`` with a text that quotes neither key nor token."""
    with pytest.raises(Transient) as caught:
        getattr(gateway, call)(*CALLS[call])
    return not any(secret in str(caught.value) for secret in ("tok_ok", "charge-1", "refund-1", "txn_1"))


@pytest.mark.parametrize("call", list(CALLS))
def test_a_provider_that_is_not_there_is_transient(call: str) -> None:
    """A refused connection may work later."""
    assert is_transient(SimulatorGateway(f"http://127.0.0.1:{free_port()}", timeout=2.0, connections=1), call)


@pytest.mark.parametrize("call", ["charge", "refund"])
def test_a_providers_error_is_transient(simulator: SimulatorGateway, call: str) -> None:
    """A 5xx leaves the outcome unknown."""
    simulator._call("POST", "/faults", json={"error_rate": 1.0})
    assert is_transient(simulator, call)


def test_a_timeout_after_charging_is_transient_and_settled_by_lookup(psp: PspServer) -> None:
    """The outcome is unknown to the caller, known to the ledger, and the retry moves no money."""
    gateway = SimulatorGateway(psp.url, timeout=0.3, connections=2)
    with pytest.raises(Transient):
        gateway.charge("charge-1", 100, "EUR", "tok_timeout_after_charge_once")
    known = gateway.lookup("charge-1")
    assert known
    assert gateway.charge("charge-1", 100, "EUR", "tok_timeout_after_charge_once") == known
    assert len(psp.ledger.entries()) == 1
    gateway._http.clear()


def test_the_same_key_for_another_amount_is_a_bug(simulator: SimulatorGateway) -> None:
    """The provider refuses it, and no retry would help."""
    simulator.charge("charge-1", 100, "EUR", "tok_ok")
    with pytest.raises(RuntimeError, match="409"):
        simulator.charge("charge-1", 200, "EUR", "tok_ok")


@pytest.mark.parametrize(("name", "adapter"), [("memory", "MemoryGateway"), ("simulator", "GuardedGateway")])
def test_the_setting_names_the_adapter(house: UseSettings, name: str, adapter: str) -> None:
    """``PAYMENT_GATEWAY`` chooses; the one over HTTP stands behind a circuit breaker."""
    house(payment_gateway=name)
    assert type(payment_gateway()).__name__ == adapter
