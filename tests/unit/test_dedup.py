"""Leases and replayed outcomes of steps: two round trips at most, and nothing lost without Redis."""

from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest
import redis

from shared.dedup import KEEP, LEASE, Claim, StepLeases
from shared.redis_client import FailFastRedis
from stacks.processes import free_port
from tests.conftest import UseSettings
from tests.support import json_logs

KEY, TASK, OTHER = "order-1/payments.charge", "task-1", "task-2"
OUTCOME = {"event": "payment.captured", "data": {"transaction_id": "txn_1"}, "stamp": {}, "discriminator": ""}


class CountingRedis(fakeredis.FakeRedis):
    """A Redis of this test alone that counts its round trips."""

    trips = 0

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Count."""
        self.trips += 1
        return super().execute_command(*args, **options)


@pytest.fixture
def client() -> Iterator[CountingRedis]:
    """An empty Redis."""
    with CountingRedis(server=fakeredis.FakeServer()) as client:
        yield client


@pytest.fixture
def leases(client: CountingRedis) -> StepLeases:
    """Leases in the empty Redis, its script known there."""
    leases = StepLeases(client)
    leases.complete("warm", "up", OUTCOME)
    client.trips = 0
    return leases


def test_a_free_key_is_claimed(leases: StepLeases) -> None:
    """Nobody is at it and nothing is stored: go ahead."""
    assert leases.claim(KEY, TASK) == Claim()


def test_a_held_lease_is_busy_for_another_task_and_free_for_its_own(leases: StepLeases) -> None:
    """A redelivery of the very message may go on; a second message waits."""
    leases.claim(KEY, TASK)
    assert leases.claim(KEY, OTHER) == Claim(busy=True)
    assert leases.claim(KEY, TASK) == Claim()


def test_a_completed_step_replays_its_outcome_to_everybody(leases: StepLeases) -> None:
    """Whoever asks later gets what was done."""
    leases.claim(KEY, TASK)
    leases.complete(KEY, TASK, OUTCOME)
    assert leases.claim(KEY, OTHER) == leases.claim(KEY, TASK) == Claim(outcome=OUTCOME)


def test_keys_do_not_touch_each_other(leases: StepLeases) -> None:
    """Another order, or another step, is another lease."""
    leases.claim(KEY, TASK)
    assert leases.claim("order-2/payments.charge", OTHER) == Claim()


def test_a_lease_ends_by_itself(leases: StepLeases, client: CountingRedis) -> None:
    """A dead worker's lease expires; an outcome is kept for a day."""
    leases.claim(KEY, TASK)
    (lease,) = [key for key in client.scan_iter() if KEY.encode() in key]
    assert 0 < client.ttl(lease) <= LEASE
    leases.complete(KEY, TASK, OUTCOME)
    assert LEASE < client.ttl(lease) <= KEEP


def test_an_expired_lease_is_anothers(leases: StepLeases, client: CountingRedis) -> None:
    """Who comes back after the lease expired may not overwrite the lease of who took over."""
    leases.claim(KEY, TASK)
    (lease,) = [key for key in client.scan_iter() if KEY.encode() in key]
    client.delete(lease)  # as expiry does
    assert leases.claim(KEY, OTHER) == Claim()
    leases.complete(KEY, TASK, {**OUTCOME, "event": "late"})
    assert leases.claim(KEY, TASK) == Claim(busy=True)
    leases.complete(KEY, OTHER, OUTCOME)
    assert leases.claim(KEY, TASK) == Claim(outcome=OUTCOME)


def test_an_expired_lease_nobody_took_is_not_completed(leases: StepLeases, client: CountingRedis) -> None:
    """Without a lease there is nothing to turn into an outcome."""
    leases.complete(KEY, TASK, OUTCOME)
    assert leases.claim(KEY, OTHER) == Claim()


def test_a_step_costs_two_round_trips_at_most(leases: StepLeases, client: CountingRedis) -> None:
    """One to claim, one to complete; one for a replay."""
    leases.claim(KEY, TASK)
    assert client.trips == 1
    leases.complete(KEY, TASK, OUTCOME)
    assert client.trips == 2
    leases.claim(KEY, OTHER)
    assert client.trips == 3


def test_a_flushed_redis_forgets_and_goes_on(leases: StepLeases, client: CountingRedis) -> None:
    """Losing keys and scripts costs work, not correctness."""
    leases.claim(KEY, TASK)
    client.flushall()
    client.script_flush()
    leases.complete(KEY, TASK, OUTCOME)
    assert leases.claim(KEY, OTHER) == Claim()
    leases.complete(KEY, OTHER, OUTCOME)
    assert leases.claim(KEY, TASK) == Claim(outcome=OUTCOME)


def test_without_redis_every_step_goes_ahead_and_one_warning_says_so(house: UseSettings) -> None:
    """The databases decide alone; the log is not flooded."""
    with json_logs() as lines, FailFastRedis.from_url(f"redis://127.0.0.1:{free_port()}") as nowhere:
        leases = StepLeases(nowhere)
        for _ in range(3):
            assert leases.claim(KEY, TASK) == Claim()
            leases.complete(KEY, TASK, OUTCOME)
        warnings = [line for line in lines() if line["level"] == "warning"]
    assert [(line["event"], line["variable"]) for line in warnings] == [("redis_unavailable", "REDIS_URL")]


def test_a_redis_that_is_back_is_used_again(house: UseSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again a moment later, its return is logged, and the next outage warns anew."""
    away, real = [True], redis.Redis.execute_command
    server = fakeredis.FakeRedis(server=fakeredis.FakeServer())

    def execute(_client: Any, *args: Any, **options: Any) -> Any:
        if away[0]:
            raise redis.ConnectionError("refused")
        return real(server, *args, **options)

    monkeypatch.setattr(redis.Redis, "execute_command", execute)
    monkeypatch.setattr("shared.redis_client._ASK_AGAIN", 0.0)
    with json_logs() as lines, FailFastRedis() as client:
        leases = StepLeases(client)
        for state in (True, False, True):
            away[0] = state
            leases.claim(KEY, TASK)
            leases.claim(KEY, TASK)
        events = [line["event"] for line in lines()]
    assert events == ["redis_unavailable", "redis_available", "redis_unavailable"]
