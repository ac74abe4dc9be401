"""Any payment gateway behind the circuit breaker."""

from collections.abc import Sequence

from shared.breaker import Breaker
from workers.payments.gateways import Charge, LedgerEntry, PaymentGateway


class GuardedGateway:
    """Calls another gateway unless its breaker is open, then raises ``Waiting``."""

    def __init__(self, gateway: PaymentGateway, breaker: Breaker) -> None:
        self._gateway = gateway
        self._breaker = breaker

    def charge(self, operation_key: str, amount_cents: int, currency: str, payment_method: str) -> Charge:
        """Capture."""
        with self._breaker.guard():
            return self._gateway.charge(operation_key, amount_cents, currency, payment_method)

    def refund(self, operation_key: str, transaction_id: str) -> None:
        """Give back."""
        with self._breaker.guard():
            self._gateway.refund(operation_key, transaction_id)

    def lookup(self, operation_key: str) -> Charge | None:
        """Ask what became of a charge."""
        with self._breaker.guard():
            return self._gateway.lookup(operation_key)

    def entries(self, after: int, limit: int) -> Sequence[LedgerEntry]:
        """Read the provider's ledger."""
        with self._breaker.guard():
            return self._gateway.entries(after, limit)
