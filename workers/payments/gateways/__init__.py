"""The port to a payment provider, and which adapter serves it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from shared.breaker import Breaker
from shared.settings import get_settings


@dataclass(frozen=True, slots=True)
class Charge:
    """What the provider knows about an operation key. A declined charge has a code and moved no money."""

    transaction_id: str | None
    failure_code: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line of the provider's ledger: a ``charge``, ``refund`` or ``reversal``, numbered by ``seq``."""

    seq: int
    kind: str
    operation_key: str
    transaction_id: str


class PaymentGateway(Protocol):
    """A payment provider. The same operation key never moves money twice.

    Each call raises ``Transient`` when the outcome is unknown: it may or may not have happened.
    """

    def charge(self, operation_key: str, amount_cents: int, currency: str, payment_method: str) -> Charge:
        """Capture an amount in minor units from a tokenised payment method."""

    def refund(self, operation_key: str, transaction_id: str) -> None:
        """Give back the whole of a captured charge."""

    def lookup(self, operation_key: str) -> Charge | None:
        """Return what became of a charge, None when the provider never saw the key."""

    def entries(self, after: int, limit: int) -> Sequence[LedgerEntry]:
        """Return the ledger's lines that follow the one numbered ``after``, oldest first."""


@cache
def payment_gateway() -> PaymentGateway:
    """Return the adapter that ``PAYMENT_GATEWAY`` names."""
    # imported here because the adapters import this module, and only the one in use need be there
    from workers.payments.gateways.guarded import GuardedGateway  # noqa: PLC0415
    from workers.payments.gateways.memory import MemoryGateway  # noqa: PLC0415
    from workers.payments.gateways.simulator import SimulatorGateway  # noqa: PLC0415

    settings = get_settings()
    if settings.payment_gateway == "memory":
        return MemoryGateway()
    gateway = SimulatorGateway(settings.gateway_url, settings.gateway_timeout, settings.worker_concurrency)
    return GuardedGateway(gateway, Breaker("payments"))
