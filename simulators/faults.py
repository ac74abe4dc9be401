"""The faults that the simulated provider shows: by rate, or forced by the payment method's token."""

import hashlib
import random
import threading
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from simulators.ledger import DECLINES

_ERRORS_TWICE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How often what goes wrong; rates from 0 to 1."""

    error_rate: float = 0.0
    timeout_before_rate: float = 0.0
    timeout_after_rate: float = 0.0
    decline_rate: float = 0.0
    latency_ms: int = 0
    timeout_seconds: float = 30.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to one request, in this order."""

    error: bool = False
    hang_before: bool = False
    decline: str | None = None
    hang_after: bool = False


class Faults:
    """Decides each request's fate; the same seed and requests give the same fates."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self.set()

    def set(self, **rates: Any) -> Rates:
        """Replace the rates by the given ones, the rest by their defaults; return them all."""
        self.rates = Rates(**rates)
        self._random = random.Random(self.rates.seed)
        return self.rates

    def change(self, **rates: Any) -> Rates:
        """Change some rates."""
        return self.set(**asdict(replace(self.rates, **rates)))

    def requests(self, key: str) -> int:
        """Return how often a key was tried since the start of the process."""
        return self._requests[key]

    def plan(self, key: str, token: str | None = None) -> Plan:
        """Decide what happens to a request; a token that forces an outcome goes before the rates."""
        with self._lock:
            self._requests[key] += 1
            first, early = self._requests[key] == 1, self._requests[key] <= _ERRORS_TWICE
            dice = [self._random.random() for _ in range(3)]
        match token:
            case "tok_error_always":
                return Plan(error=True)
            case "tok_error_twice":
                return Plan(error=early)
            case "tok_timeout_after_charge_once":
                return Plan(hang_after=first)
            case "tok_declined" | "tok_insufficient_funds":
                return Plan(decline=DECLINES[token])
        return Plan(
            error=dice[0] < self.rates.error_rate,
            hang_before=dice[1] < self.rates.timeout_before_rate,
            decline="card_declined" if token and self._is_declined(key) else None,
            hang_after=dice[2] < self.rates.timeout_after_rate,
        )

    def _is_declined(self, key: str) -> bool:
        """Decide by the key alone, so that a retry is answered like the first request."""
        digest = hashlib.sha256(f"{self.rates.seed}/{key}".encode()).digest()
        return int.from_bytes(digest[:6]) / 2**48 < self.rates.decline_rate
