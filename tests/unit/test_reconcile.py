"""Reconciling with the provider's ledger: whatever was left over is settled, each line once, no fact lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore
from kombu import Producer, Queue
from kombu.exceptions import OperationalError
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from shared.contracts.events import Event, EventType, event_id
from shared.contracts.queues import EVENTS_QUEUE, TaskName
from shared.contracts.waybill import Waybill
from shared.database import get_database
from shared.errors import Declined, Transient
from shared.messaging.app import declare_topology
from shared.settings import get_settings
from shared.telemetry import metrics
from simulators.ledger import Ledger
from tests.conftest import UseSettings
from tests.support import json_logs, new_waybill
from workers.payments import operations, reconcile
from workers.payments.gateways import Charge, LedgerEntry
from workers.payments.models import Payment, PaymentStatus

AGES_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass
class Provider:
    """The simulator's ledger behind the port, without HTTP; ``fails`` names calls whose outcome stays unknown."""

    ledger: Ledger = field(default_factory=Ledger)
    fails: set[str] = field(default_factory=set)
    pages: list[tuple[int, int]] = field(default_factory=list)
    most: int = 1000
    said: list[Event] = field(default_factory=list)

    def charge(self, operation_key: str, amount_cents: int, currency: str, payment_method: str) -> Charge:
        """Charge; a failing one is charged as well, and nobody hears of it."""
        body = {"amount_cents": amount_cents, "currency": currency, "payment_method": payment_method}
        declined = "card_declined" if payment_method == "tok_declined" else None
        answer = self.ledger.charge(operation_key, body, decline=declined)
        self._maybe_fail("charge")
        return Charge(answer.body.get("transaction_id"), answer.body.get("detail"))

    def refund(self, operation_key: str, transaction_id: str) -> None:
        """Refund; a failing one never arrives."""
        self._maybe_fail("refund")
        assert self.ledger.refund(operation_key, {"transaction_id": transaction_id}).status == 200

    def lookup(self, operation_key: str) -> Charge | None:
        """Look a charge up."""
        self._maybe_fail("lookup")
        known = self.ledger.lookup(operation_key)
        return known and Charge(known["transaction_id"], None if known["transaction_id"] else "PAYMENT_FAILED")

    def entries(self, after: int, limit: int) -> Sequence[LedgerEntry]:
        """Read the ledger, at most ``most`` lines at a time; a failing one fails at the second page."""
        if self.pages:
            self._maybe_fail("entries")
        lines = self.ledger.entries(after, min(limit, self.most))
        self.pages.append((after, len(lines)))
        return [LedgerEntry(e["seq"], e["kind"], e["idempotency_key"], e["transaction_id"]) for e in lines]

    def reconcile(self) -> reconcile.Report:
        """Run once against this provider; what it wants published is in ``said``."""
        self.said.clear()
        return reconcile.reconcile(lambda *events: self.said.extend(events))

    def told(self) -> list[str]:
        """Return the types of what was published."""
        return [event.type for event in self.said]

    def net_cents(self) -> int:
        """Return what the provider has taken and kept."""
        return sum(total["net_cents"] for total in self.ledger.totals().values())

    def kinds(self) -> list[str]:
        """Return the kinds of the ledger's lines."""
        return [line["kind"] for line in self.ledger.entries()]

    def _maybe_fail(self, call: str) -> None:
        if call in self.fails:
            raise Transient(f"payment provider: timeout from {call}")


@pytest.fixture
def provider(house: UseSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider of this test alone."""
    provider = Provider()
    monkeypatch.setattr(operations, "payment_gateway", lambda: provider)
    monkeypatch.setattr(reconcile, "payment_gateway", lambda: provider)
    yield provider
    provider.ledger.close()


def payment_of(waybill: Waybill) -> Payment:
    """Return the order's payment as it stands."""
    with get_database("payments").transaction() as session:
        return session.get_one(Payment, waybill.order_id)


def change(waybill: Waybill, **values: Any) -> None:
    """Change the order's payment behind everybody's back."""
    with get_database("payments").transaction() as session:
        payment = session.get_one(Payment, waybill.order_id)
        for name, value in values.items():
            setattr(payment, name, value)


def attempt(provider: Provider, *, arrives: bool = True, **fields: Any) -> Waybill:
    """Let a charge's outcome stay unknown, long ago; ``arrives`` says whether the provider took it."""
    waybill = new_waybill(**fields)
    charge = provider.charge
    if not arrives:
        provider.charge = lambda *_: provider._maybe_fail("charge")  # type: ignore[assignment,return-value,method-assign]
    provider.fails = {"charge"}
    with pytest.raises(Transient):
        operations.charge(waybill)
    provider.charge, provider.fails = charge, set()  # type: ignore[method-assign]
    change(waybill, attempted_at=AGES_AGO)
    return waybill


def captured() -> Waybill:
    """An order that was paid without trouble."""
    waybill = new_waybill()
    operations.charge(waybill)
    return waybill


REFUNDED = [EventType.PAYMENT_CAPTURED, EventType.PAYMENT_REFUNDED]
REVERSED = [EventType.PAYMENT_CAPTURED, EventType.PAYMENT_REVERSED]


@pytest.mark.parametrize(
    ("method", "becomes"), [("tok_ok", PaymentStatus.CAPTURED), ("tok_declined", PaymentStatus.DECLINED)]
)
def test_an_unknown_attempt_is_settled_by_asking(provider: Provider, method: str, becomes: PaymentStatus) -> None:
    """What the provider knows under the key is what happened; the step's retry then finds it settled."""
    waybill = attempt(provider, payment_method=method)
    assert provider.reconcile().settled == 1
    assert payment_of(waybill).status == becomes
    provider.fails = {"charge", "lookup"}  # the retry has no need to ask
    if becomes == PaymentStatus.CAPTURED:
        assert operations.charge(waybill).event == EventType.PAYMENT_CAPTURED
    else:
        with pytest.raises(Declined, match="PAYMENT_FAILED"):
            operations.charge(waybill)
    assert len(provider.kinds()) == (becomes == PaymentStatus.CAPTURED)


def test_an_attempt_that_never_arrived_is_left_to_the_retry(provider: Provider) -> None:
    """Nothing happened yet and the order is wanted: the step charges it, once."""
    waybill = attempt(provider, arrives=False)
    assert provider.reconcile().settled == 0
    assert payment_of(waybill).status == PaymentStatus.UNKNOWN
    assert operations.charge(waybill).event == EventType.PAYMENT_CAPTURED
    assert provider.kinds() == ["charge"]


def test_a_cancelled_attempt_that_never_arrived_is_voided(provider: Provider) -> None:
    """Nothing happened and nothing may any more."""
    waybill = attempt(provider, arrives=False)
    change(waybill, cancelled=True)
    assert provider.reconcile().settled == 1
    assert payment_of(waybill).status == PaymentStatus.VOIDED


def test_an_attempt_that_may_be_under_way_is_left_alone(provider: Provider) -> None:
    """A call of this moment is its step's own business: the answer would be too early."""
    waybill = attempt(provider, arrives=False)
    recent = datetime.now(UTC) - timedelta(seconds=get_settings().gateway_timeout)
    change(waybill, cancelled=True, attempted_at=recent)
    assert provider.reconcile().settled == 0
    assert payment_of(waybill).status == PaymentStatus.UNKNOWN


def test_a_cancelled_attempt_that_was_charged_is_given_back(provider: Provider) -> None:
    """Looked up as captured, wanted by nobody: refunded, and said so."""
    waybill = attempt(provider)
    change(waybill, cancelled=True)
    report = provider.reconcile()
    assert (report.refunded, provider.told()) == (1, REFUNDED)
    assert payment_of(waybill).status == PaymentStatus.REFUNDED
    assert provider.net_cents() == 0


def late_charge(provider: Provider) -> Waybill:
    """A charge that reached the provider after the cancellation had found nothing to undo."""
    waybill = attempt(provider)
    change(waybill, cancelled=True, status=PaymentStatus.VOIDED)
    return waybill


def test_a_charge_of_a_voided_payment_is_given_back(provider: Provider) -> None:
    """Only the ledger knows of it; the customer does not stay charged for a cancelled order."""
    waybill = late_charge(provider)
    assert provider.net_cents() == waybill.amount_cents
    report = provider.reconcile()
    assert provider.told() == REFUNDED
    assert {(event.subject, event.data["amount_cents"]) for event in report.events} == {
        (waybill.order_id, waybill.amount_cents)
    }
    assert (provider.net_cents(), provider.kinds()) == (0, ["charge", "refund"])
    assert report.unaccounted == ()


def test_its_event_is_the_one_that_the_step_would_have_stated(provider: Provider) -> None:
    """A refund that step and reconciliation both see is one line of the timeline, not two."""
    waybill = late_charge(provider)
    provider.reconcile()
    stated = operations.refund(waybill)
    by_step = [*stated.learned, (stated.event, stated.data)]
    assert [(event.type, dict(event.data)) for event in provider.said] == [(name, dict(data)) for name, data in by_step]
    assert stated.discriminator == ""
    assert all(event.id == event_id(waybill.order_id, event.type) for event in provider.said)
    assert provider.kinds() == ["charge", "refund"]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """What the process would export."""
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    counter = meters.get_meter("waybill").create_counter("waybill.charges.unaccounted")
    monkeypatch.setattr(metrics, "_unaccounted", counter)
    yield reader
    meters.shutdown()


def counted(reader: InMemoryMetricReader) -> int:
    """Return the sum of everything counted."""
    data = reader.get_metrics_data()
    metric_lists = [scope.metrics for each in data.resource_metrics for scope in each.scope_metrics] if data else []
    return sum(point.value for each in metric_lists for metric in each for point in metric.data.data_points)


def stray(provider: Provider, key: str = "charge-of-somebody") -> None:
    """A charge under a key that no payment of ours has."""
    provider.charge(key, 1000, "EUR", "tok_ok")


def test_a_charge_that_nobody_knows_is_reported_and_left_alone(
    provider: Provider, reader: InMemoryMetricReader
) -> None:
    """It may be another system's: an error line and a metric for an operator, never a blind refund."""
    stray(provider)
    with json_logs() as lines:
        report = provider.reconcile()
        (line,) = [line for line in lines() if line["event"] == "charge_unaccounted"]
    assert (line["level"], line["operation_key"]) == ("error", "charge-of-somebody")
    assert line["transaction_id"].startswith("txn_")
    assert counted(reader) == 1
    assert len(report.unaccounted) == 1
    assert report.events == ()
    assert provider.kinds() == ["charge"]


def test_a_second_charge_of_one_order_is_reported(provider: Provider) -> None:
    """Our row names one transaction; a charge of ours under another one is nobody's to guess about."""
    waybill = captured()
    change(waybill, transaction_id="txn_other")
    report = provider.reconcile()
    assert [entry.operation_key for entry in report.unaccounted] == [payment_of(waybill).operation_key]
    assert provider.kinds() == ["charge"]


def test_a_reversal_is_stated_and_never_refunded(provider: Provider) -> None:
    """The bank took the money back: the order must stop, and nobody gives the money back a second time."""
    waybill = captured()
    provider.reconcile()
    provider.ledger.reverse(str(payment_of(waybill).transaction_id))
    report = provider.reconcile()
    assert [(event.type, event.subject) for event in report.events] == [(name, waybill.order_id) for name in REVERSED]
    assert payment_of(waybill).status == PaymentStatus.REVERSED
    assert operations.refund(waybill).event is None
    assert provider.reconcile().events == ()
    assert provider.kinds() == ["charge", "reversal"]


def test_a_late_charge_of_a_reversed_order_is_refused(provider: Provider) -> None:
    """The chain published again does not charge what the bank took back."""
    waybill = captured()
    provider.ledger.reverse(str(payment_of(waybill).transaction_id))
    provider.reconcile()
    with pytest.raises(Declined, match=operations.CANCELLED):
        operations.charge(waybill)
    assert provider.kinds() == ["charge", "reversal"]


@pytest.mark.parametrize("most", [1, 1000], ids=["two pages", "one page"])
@pytest.mark.parametrize("cancelled", [False, True], ids=["wanted", "cancelled"])
def test_a_reversal_before_we_learned_of_the_capture_is_settled(
    provider: Provider, most: int, *, cancelled: bool
) -> None:
    """The charge's answer got lost, then the bank took it back: one reading of the ledger settles both."""
    waybill = attempt(provider)
    change(waybill, cancelled=cancelled, attempted_at=datetime.now(UTC))  # too recent to be looked up
    (charge,) = provider.ledger.entries()
    provider.ledger.reverse(charge["transaction_id"])
    provider.most = most
    provider.reconcile()
    assert provider.told() == REVERSED
    assert payment_of(waybill).status == PaymentStatus.REVERSED
    with pytest.raises(Declined, match=operations.CANCELLED):
        operations.charge(waybill)
    assert operations.refund(waybill).event is None
    assert (provider.kinds(), provider.net_cents()) == (["charge", "reversal"], 0)


def test_a_reversal_while_the_charge_is_under_way_is_settled(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider charged and the bank took it back before the charge's answer reached us."""
    waybill, charge = new_waybill(), provider.charge

    def slow(*arguments: Any) -> Charge:
        answer = charge(*arguments)
        provider.ledger.reverse(str(answer.transaction_id))
        provider.reconcile()
        return answer

    monkeypatch.setattr(provider, "charge", slow)
    with pytest.raises(Declined, match=operations.CANCELLED):
        operations.charge(waybill)
    assert provider.told() == REVERSED
    assert payment_of(waybill).status == PaymentStatus.REVERSED
    assert provider.net_cents() == 0


def test_a_run_that_was_overtaken_neither_goes_back_nor_reports_again(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, reader: InMemoryMetricReader
) -> None:
    """A webhook starts a run beside the periodic one, which reads the same lines, and further ones."""
    reversed_ = captured()
    stray(provider)
    entries = provider.entries

    def overtaken(after: int, limit: int) -> Sequence[LedgerEntry]:
        monkeypatch.setattr(provider, "entries", entries)
        page = entries(after, limit)
        stray(provider, "later")
        provider.ledger.reverse(str(payment_of(reversed_).transaction_id))
        assert len(provider.reconcile().unaccounted) == 2
        return page

    monkeypatch.setattr(provider, "entries", overtaken)
    assert provider.reconcile().unaccounted == ()
    assert counted(reader) == 2
    assert reconcile._position() == provider.ledger.entries()[-1]["seq"]
    assert payment_of(reversed_).status == PaymentStatus.REVERSED


def test_each_line_of_the_ledger_is_read_once(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """The position is kept, page by page: a second run asks only for what came after it."""
    provider.most = 2
    for number in range(5):
        stray(provider, f"key-{number}")
    assert len(provider.reconcile().unaccounted) == 5
    assert provider.pages == [(0, 2), (2, 2), (4, 1), (5, 0)]
    provider.pages.clear()
    stray(provider, "key-5")
    assert [entry.operation_key for entry in provider.reconcile().unaccounted] == ["key-5"]
    assert provider.pages == [(5, 1), (6, 0)]


def test_a_provider_that_fails_half_way_costs_a_run_and_no_finding(
    provider: Provider, reader: InMemoryMetricReader
) -> None:
    """What the first page told is told, now or by the next run, although the second page could not be read."""
    waybill = captured()
    provider.reconcile()
    stray(provider)
    provider.ledger.reverse(str(payment_of(waybill).transaction_id))
    stray(provider, "later")
    provider.pages.clear()
    provider.most, provider.fails = 2, {"entries"}
    with pytest.raises(Transient):
        provider.reconcile()
    told = provider.told()
    provider.fails = set()
    provider.reconcile()
    assert EventType.PAYMENT_REVERSED in told + provider.told()
    assert counted(reader) >= 2


def test_a_refund_that_fails_costs_a_run_and_no_finding(provider: Provider) -> None:
    """The reversal of one order is not forgotten because the refund of another could not be made."""
    reversed_, owed = captured(), late_charge(provider)
    provider.ledger.reverse(str(payment_of(reversed_).transaction_id))
    provider.fails = {"refund"}
    with pytest.raises(Transient):
        provider.reconcile()
    told = provider.told()
    provider.fails = set()
    provider.reconcile()
    assert {*told, *provider.told()} == {*REFUNDED, *REVERSED}
    assert payment_of(owed).status == PaymentStatus.REFUNDED


@pytest.fixture
def app() -> Celery:
    """The fleet's app on this test's own memory broker."""
    from workers import app  # noqa: PLC0415 - makes the process's app

    app.loader.import_default_modules()
    declare_topology(app)
    return app


def published(app: Celery) -> list[str]:
    """Take the types of the events that were published."""
    found = []
    with app.connection_for_read() as connection:
        queue = Queue(EVENTS_QUEUE, channel=connection.default_channel, no_declare=True)
        while (message := queue.get()) is not None:
            message.ack()
            message.accept = {message.content_type}
            found.append(message.decode()["type"])
    return found


@pytest.mark.parametrize("fact", [EventType.PAYMENT_REVERSED, EventType.PAYMENT_REFUNDED])
def test_a_broker_that_fails_then_costs_a_run_and_no_event(
    provider: Provider, app: Celery, monkeypatch: pytest.MonkeyPatch, fact: EventType
) -> None:
    """Between finding a fact and publishing it the process may die: the next run publishes it all the same."""
    if fact == EventType.PAYMENT_REVERSED:
        provider.ledger.reverse(str(payment_of(captured()).transaction_id))
    else:
        late_charge(provider)
    compare = app.tasks[TaskName.RECONCILE]

    def refuse(*_: Any, **__: Any) -> None:
        raise OperationalError("connection refused")

    with monkeypatch.context() as patched:
        patched.setattr(Producer, "publish", refuse)
        with pytest.raises(Ignore):  # this run is dropped
            compare()
    assert published(app) == []
    compare()
    assert published(app) == [EventType.PAYMENT_CAPTURED, fact]
    compare()
    assert published(app) == []
