"""The fast path of deduplication: one Redis key per order and step, first a lease, then the outcome.

It saves work and decides nothing: the guard is the service's own table and the provider's idempotency key. A lost
Redis costs speed only, so every failure of it is answered as if there were no key.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import redis

from shared.redis_client import redis_client

LEASE = 30  # seconds; longer than a step can take, its calls being bounded by time-outs
KEEP = 24 * 3600  # seconds that an outcome is replayed
_PREFIX = "waybill:step:"
_LEASED, _DONE = "leased:", "done:"
# Set the outcome only while the lease is ours: a lease that expired may be another's by now.
_COMPLETE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
end
"""


_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """What the key said: go ahead, take this outcome, or somebody else is at it."""

    outcome: dict[str, Any] | None = None
    busy: bool = False


class StepLeases:
    """Leases and outcomes of steps, re-entrant for one task id."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._complete = client.register_script(_COMPLETE)
        self._release = client.register_script(_RELEASE)

    def claim(self, key: str, task_id: str) -> Claim:
        """Take the lease, or learn why not. One round trip."""
        held = self._ask(lambda: self._redis.set(_PREFIX + key, _LEASED + task_id, nx=True, get=True, ex=LEASE))
        known = held.decode() if held else ""
        if known in ("", _LEASED + task_id):
            return Claim()
        if known.startswith(_DONE):
            return Claim(outcome=json.loads(known.removeprefix(_DONE)))
        return Claim(busy=True)

    def complete(self, key: str, task_id: str, outcome: dict[str, Any]) -> None:
        """Turn our lease into the outcome to be replayed. One round trip."""
        arguments: list[str | int] = [_LEASED + task_id, _DONE + json.dumps(outcome), KEEP]
        self._ask(lambda: self._complete(keys=[_PREFIX + key], args=arguments))

    def release(self, key: str, task_id: str) -> None:
        """Give our lease up: there is nothing to replay, and the next copy need not wait. One round trip."""
        self._ask(lambda: self._release(keys=[_PREFIX + key], args=[_LEASED + task_id]))

    def _ask(self, command: Callable[[], Any]) -> Any:
        """Run a command; without Redis the answer is None, as if nothing were known."""
        try:
            return command()
        except redis.RedisError:
            return None


@cache
def step_leases() -> StepLeases:
    """Return this process's leases."""
    return StepLeases(redis_client())
