"""How much of everything: the full run, the small one, and the negative control."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stacks.chaos_faults import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """How much of everything. ``seconds`` is how long orders are sent; ``rates`` are the provider's faults."""

    name: str
    orders: int
    seconds: float
    minutes: float
    counts: Callable[[Fault], int]
    rates: Mapping[str, float]
    environment: Mapping[str, str]
    cancelled: float = 0.05  # share of the orders
    guarded: bool = True


RATES = {"error_rate": 0.2, "timeout_after_rate": 0.05, "decline_rate": 0.1, "timeout_seconds": 3.0}
# Short waits, so that what is given up, swept and retried comes within the run.
ENVIRONMENT = {
    "GATEWAY_TIMEOUT": "1.5",
    "STEP_BACKOFF_MAX": "5",
    "STEP_MAX_RETRIES": "3",
    "SWEEP_EVERY": "1",
    "SWEEP_AFTER": "5",
    "ORDER_DEADLINE": "150",
}
FULL = Scenario(
    name="full",
    orders=1000,
    seconds=200,
    minutes=8,
    counts=lambda fault: fault.count,
    rates=RATES,
    environment=ENVIRONMENT,
)
SMALL = Scenario(
    name="small",
    orders=100,
    seconds=20,
    minutes=2,
    counts=lambda fault: fault.in_small,
    rates=RATES,
    environment={**ENVIRONMENT, "STEP_MAX_RETRIES": "1", "ORDER_DEADLINE": "40"},
)
CONTROL = Scenario(
    name="negative control",
    orders=40,
    seconds=8,
    minutes=1,
    counts=lambda fault: fault.in_control,
    rates={**RATES, "timeout_after_rate": 0.2},
    environment=ENVIRONMENT,
    cancelled=0,
    guarded=False,
)
