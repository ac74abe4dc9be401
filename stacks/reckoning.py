"""Compare what the orders say about money with the payment provider's ledger, the truth about it.

Pure: orders and ledger entries in, every difference out. Amounts are minor units (cents).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.contracts.events import EventType
from shared.contracts.queues import TaskName
from shared.contracts.saga import SAGA, Status
from workers.orders.status import FINAL, PARKED
from workers.payments.operations import operation_key

#: Where an order may rest: ended, or parked where an operator sees it.
RESTING = FINAL | PARKED | {Status.NEEDS_ATTENTION}
_CHARGE_AT = next(index for index, step in enumerate(SAGA) if step.task == TaskName.CHARGE)
#: Parked before the charge is known to have happened. While a provider's answer is missing, money may have moved.
PARKED_UNPAID = frozenset(step.parked for step in SAGA[: _CHARGE_AT + 1] if step.parked)


@dataclass(frozen=True, slots=True)
class Money:
    """Money that went one way and came back."""

    captured_cents: int = 0
    refunded_cents: int = 0

    @property
    def net_cents(self) -> int:
        """Return what stays with the shop."""
        return self.captured_cents - self.refunded_cents

    def __add__(self, other: "Money") -> "Money":
        """Sum up."""
        return Money(self.captured_cents + other.captured_cents, self.refunded_cents + other.refunded_cents)

    def __str__(self) -> str:
        """Say it in cents."""
        return f"{self.captured_cents} captured, {self.refunded_cents} refunded"


@dataclass(frozen=True, slots=True)
class OrderAccount:
    """What an order says: its status, its price, and the money that its timeline says was moved."""

    id: str
    status: str
    amount_cents: int
    currency: str
    said: Money

    @classmethod
    def from_api(cls, order: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> "OrderAccount":
        """Read an order and its timeline as the API shows them."""
        sums: Counter[str] = Counter()
        for event in events:
            sums[event["type"]] += event["data"].get("amount_cents", 0)
        returned = sums[EventType.PAYMENT_REFUNDED] + sums[EventType.PAYMENT_REVERSED]
        said = Money(sums[EventType.PAYMENT_CAPTURED], returned)
        return cls(order["id"], order["status"], order["amount_cents"], order["currency"], said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reckoning:
    """The totals by currency, and for each rule the orders that break it (ids; empty: none does)."""

    ledger: dict[str, Money] = field(default_factory=dict)
    orders: dict[str, Money] = field(default_factory=dict)

    double_charged: list[str] = field(default_factory=list)
    wrongly_charged: list[str] = field(default_factory=list)
    uncharged_completed: list[str] = field(default_factory=list)
    charged_cancelled: list[str] = field(default_factory=list)
    charged_parked: list[str] = field(default_factory=list)
    misstated: list[str] = field(default_factory=list)
    unaccounted: list[str] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)

    @property
    def differences(self) -> list[str]:
        """Return a line for each rule that an order or a ledger entry breaks; empty when all is well."""
        lines = [f"{what}: {broken}" for rule, what in _RULES.items() for broken in getattr(self, rule)]
        for currency in sorted({*self.ledger, *self.orders}):
            said, real = self.orders.get(currency, Money()), self.ledger.get(currency, Money())
            if said != real:
                lines.append(f"{currency}: the orders say {said}; the ledger says {real} (cents)")
        return lines


_RULES = {
    "double_charged": "charged more than once",
    "wrongly_charged": "charged another amount or currency than the order's",
    "uncharged_completed": "COMPLETED without its money",
    "charged_cancelled": "CANCELLED, but money was kept",
    "charged_parked": "parked before its payment, but money was taken",
    "misstated": "its timeline says otherwise than the ledger",
    "unaccounted": "ledger entry of no order",
    "unsettled": "neither ended nor parked",
}


def reckon(orders: Iterable[OrderAccount], ledger_entries: Iterable[Mapping[str, Any]]) -> Reckoning:
    """Compare orders with the entries of ``GET /ledger``.

    A charge belongs to the order whose operation key it was made under; what went back (a refund, or a reversal by
    the customer's bank) belongs to the order whose charge it names.
    """
    charges: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    returns: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    reckoning = Reckoning()
    for entry in ledger_entries:
        is_charge = entry["kind"] == "charge"
        (charges[entry["idempotency_key"]] if is_charge else returns[entry["transaction_id"]]).append(entry)
        _add(reckoning.ledger, entry["currency"], _money(entry))
    for order in orders:
        own = charges.pop(operation_key("charge", order.id), [])
        back = [entry for charge in own for entry in returns.pop(charge["transaction_id"], [])]
        _add(reckoning.orders, order.currency, order.said)
        _judge(reckoning, order, own, sum(map(_money, [*own, *back]), Money()))
    for entries in [*charges.values(), *returns.values()]:
        reckoning.unaccounted.extend(map(_line, entries))
    return reckoning


def _judge(reckoning: Reckoning, order: OrderAccount, charges: list[Mapping[str, Any]], real: Money) -> None:
    """Note every rule that one order breaks."""
    price = (order.amount_cents, order.currency)
    broken = {
        "double_charged": len(charges) > 1,
        "wrongly_charged": any((each["amount_cents"], each["currency"]) != price for each in charges),
        "uncharged_completed": order.status == Status.COMPLETED and real.net_cents < order.amount_cents,
        "charged_cancelled": order.status == Status.CANCELLED and real.net_cents != 0,
        "charged_parked": order.status in PARKED_UNPAID and real.net_cents != 0,
        "misstated": order.status in RESTING - PARKED_UNPAID and order.said != real,
        "unsettled": order.status not in RESTING,
    }
    for rule, is_broken in broken.items():
        if is_broken:
            getattr(reckoning, rule).append(order.id)


def _money(entry: Mapping[str, Any]) -> Money:
    amount = int(entry["amount_cents"])
    return Money(captured_cents=amount) if entry["kind"] == "charge" else Money(refunded_cents=amount)


def _line(entry: Mapping[str, Any]) -> str:
    return f"{entry['kind']} of {entry['amount_cents']} {entry['currency']} (cents) under {entry['idempotency_key']}"


def _add(totals: dict[str, Money], currency: str, money: Money) -> None:
    totals[currency] = totals.get(currency, Money()) + money
