"""The adapter without a network: a provider in this process, for eager-mode tests (``PAYMENT_GATEWAY=memory``)."""

import threading
import uuid
from collections.abc import Sequence

from workers.payments.gateways import Charge, LedgerEntry

DECLINING = frozenset({"tok_declined", "tok_insufficient_funds"})


class MemoryGateway:
    """Keeps its ledger in ``charges`` and ``refunds``, by operation key; amounts are minor units."""

    def __init__(self) -> None:
        self.charges: dict[str, tuple[Charge, int]] = {}
        self.refunds: dict[str, str] = {}
        self._entries: list[LedgerEntry] = []
        self._lock = threading.Lock()

    def charge(self, operation_key: str, amount_cents: int, currency: str, payment_method: str) -> Charge:  # noqa: ARG002
        """Capture once for each key; the tokens in ``DECLINING`` are declined."""
        declined = Charge(None, failure_code="PAYMENT_FAILED")
        with self._lock:
            if operation_key not in self.charges:
                answer = declined if payment_method in DECLINING else Charge(f"txn_{uuid.uuid4().hex}")
                self.charges[operation_key] = (answer, amount_cents)
                self._append("charge", operation_key, answer.transaction_id)
            return self.charges[operation_key][0]

    def refund(self, operation_key: str, transaction_id: str) -> None:
        """Give back once for each key."""
        with self._lock:
            if operation_key not in self.refunds:
                self.refunds[operation_key] = transaction_id
                self._append("refund", operation_key, transaction_id)

    def reverse(self, transaction_id: str) -> None:
        """Let the customer's bank take a charge back; not of the port."""
        with self._lock:
            self._append("reversal", f"reversal-{transaction_id}", transaction_id)

    def lookup(self, operation_key: str) -> Charge | None:
        """Say what became of a charge."""
        known = self.charges.get(operation_key)
        return known and known[0]

    def entries(self, after: int, limit: int) -> Sequence[LedgerEntry]:
        """Read the charges that moved money, the refunds and the reversals."""
        return self._entries[after : after + limit]

    def _append(self, kind: str, operation_key: str, transaction_id: str | None) -> None:
        if transaction_id:
            self._entries.append(LedgerEntry(len(self._entries) + 1, kind, operation_key, transaction_id))
