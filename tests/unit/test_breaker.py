"""The circuit breaker: shared through Redis, one canary at a time, no queue behind a lock, no harm without Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import fakeredis
import pytest
from celery import Celery
from kombu import Queue
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from shared import breaker as module
from shared.breaker import FAILURES, REST, Breaker
from shared.errors import Declined, Transient, Waiting
from shared.messaging.app import declare_topology
from shared.redis_client import connect, redis_client
from shared.telemetry import metrics
from tests.conftest import UseSettings
from tests.support import json_logs, new_waybill
from workers.payments import operations

THREADS = 16
PATIENCE = 10  # seconds; a test that waits longer hangs


@pytest.fixture(autouse=True)
def _own_redis(house: UseSettings) -> None:
    """A Redis of this test alone."""


def fail(breaker: Breaker, times: int = 1) -> None:
    """Let calls of the provider fail as a time-out does."""
    for _ in range(times):
        with pytest.raises(Transient), breaker.guard():
            raise Transient("payment provider: timeout")


def let_rest() -> None:
    """Move the moment the breaker opened into the past, instead of waiting for it."""
    (key,) = redis_client().keys("*opened_at")
    redis_client().set(key, int(time.time()) - 2 * REST)


def is_open(breaker: Breaker) -> bool:
    """Say whether a call is held back; one that is let through succeeds."""
    try:
        with breaker.guard():
            return False
    except Waiting:
        return True


def test_it_opens_for_everybody_after_failures_in_a_row() -> None:
    """The count is shared: a second process's breaker is open as well, and the provider is left alone."""
    first, second = Breaker("payments"), Breaker("payments")
    fail(first, FAILURES // 2)
    fail(second, FAILURES - FAILURES // 2 - 1)
    fail(first)
    called: list[str] = []
    for each in (first, second):
        with pytest.raises(Waiting), each.guard():
            called.append("provider")
    assert called == []


def test_it_stays_closed_below_the_limit() -> None:
    """One failure fewer changes nothing, for nobody."""
    first, second = Breaker("payments"), Breaker("payments")
    fail(first, FAILURES - 1)
    assert not is_open(second)


def test_each_provider_has_its_own() -> None:
    """A dead payment provider does not stop the others."""
    fail(Breaker("payments"), FAILURES)
    assert not is_open(Breaker("couriers"))


@pytest.mark.parametrize("error", [Declined("PAYMENT_FAILED", event=None), RuntimeError("HTTP 409"), None], ids=repr)
def test_an_answer_of_the_provider_is_no_failure(error: Exception | None) -> None:
    """A declined card, a bug of ours and a success all show that the provider answers: they reset the count."""
    breaker = Breaker("payments")
    for _ in range(3):
        fail(breaker, FAILURES - 1)
        try:
            with breaker.guard():
                if error:
                    raise error
        except type(error or Waiting("")):
            assert error is not None
    assert not is_open(breaker)


def test_declines_alone_never_open_it() -> None:
    """A bad day of the customers is none of the provider's."""
    breaker = Breaker("payments")
    for _ in range(3 * FAILURES):
        with pytest.raises(Declined), breaker.guard():
            raise Declined("PAYMENT_FAILED", event=None)
    assert not is_open(breaker)


def test_who_waits_comes_back_after_the_rest_spread_out() -> None:
    """The waits lie between one and two rests, and differ, so that no stampede follows the canary."""
    breaker = Breaker("payments")
    fail(breaker, FAILURES)
    waits = set()
    for _ in range(20):
        with pytest.raises(Waiting) as held, breaker.guard():
            pass
        waits.add(held.value.retry_after)
    assert all(REST <= wait <= 2 * REST for wait in waits)
    assert len(waits) > 1


def with_a_canary(breakers: list[Breaker], ending: Exception | None) -> int:
    """Let 16 threads call at once, and the canary end only when the others were turned away; return the calls."""
    calls, waiting = [], threading.Semaphore(0)
    start = threading.Barrier(THREADS)

    def call(number: int) -> None:
        start.wait(PATIENCE)
        try:
            with breakers[number % len(breakers)].guard():
                calls.append(number)
                for _ in range(THREADS - 1):
                    assert waiting.acquire(timeout=PATIENCE), "a second call of the provider was let through"
                if ending:
                    raise ending
        except Waiting:
            waiting.release()
        except Transient:
            assert ending

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(call, range(THREADS)))
    return len(calls)


@pytest.mark.parametrize("ending", [None, Transient("still down")], ids=["it recovered", "it did not"])
def test_after_the_rest_one_canary_decides_for_all(ending: Exception | None) -> None:
    """Of 16 threads behind two breakers exactly one calls; its outcome closes or opens both."""
    both = [Breaker("payments"), Breaker("payments")]
    fail(both[0], FAILURES)
    let_rest()
    assert with_a_canary(both, ending) == 1
    assert [is_open(each) for each in both] == [ending is not None] * 2


def test_a_failed_canary_is_followed_by_another_after_the_rest() -> None:
    """It opens again for a whole rest, then again one call tries."""
    both = [Breaker("payments"), Breaker("payments")]
    fail(both[0], FAILURES)
    for _ in range(2):
        let_rest()
        fail(both[1])
        assert is_open(both[0])
    let_rest()
    assert with_a_canary(both, None) == 1
    assert not is_open(both[1])


def test_a_canary_that_never_came_back_is_given_up() -> None:
    """A process killed in the middle of its call holds the others back only until its mark expires."""
    breaker = Breaker("payments")
    fail(breaker, FAILURES)
    let_rest()
    assert breaker._take_canary()
    assert is_open(breaker)
    assert 0 < redis_client().ttl(breaker._canary) <= module._CANARY_TIMEOUT
    redis_client().delete(breaker._canary)  # what its expiry does
    assert not is_open(breaker)


def test_slow_calls_run_side_by_side() -> None:
    """The library's lock is not held while the provider is asked: eight calls are all under way at once."""
    breaker, together = Breaker("payments"), threading.Barrier(8)

    def call(_: int) -> None:
        with breaker.guard():
            together.wait(PATIENCE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))


@pytest.mark.parametrize("lost", ["from the start", "later", "while open"])
def test_without_redis_every_call_goes_through(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is only the fast path: without it the breaker holds nobody back, whatever it knew before."""
    server = fakeredis.FakeServer()
    monkeypatch.setattr(module, "redis_client", lambda: fakeredis.FakeRedis(server=server))
    server.connected = lost != "from the start"
    breaker = Breaker("payments")
    if lost == "while open":
        fail(breaker, FAILURES)
    server.connected = False
    fail(breaker, 3 * FAILURES)
    assert not is_open(breaker)


def test_an_emptied_redis_closes_it() -> None:
    """What nobody remembers is no reason to wait; the count begins anew, still shared."""
    first, second = Breaker("payments"), Breaker("payments")
    fail(first, FAILURES)
    redis_client().flushall()
    assert not is_open(first)
    fail(second, FAILURES)
    assert is_open(first)


def test_a_lost_redis_is_said_once_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real client: one warning for the outage, a metric for what it cost, no call held back."""
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    monkeypatch.setattr(metrics, "_redis_unavailable", meters.get_meter("waybill").create_counter("lost"))
    client = connect("redis://127.0.0.1:1/0")  # nobody listens there
    monkeypatch.setattr(module, "redis_client", lambda: client)
    with json_logs() as lines:
        assert not any(is_open(Breaker("payments")) for _ in range(10))
        said = [line for line in lines() if line["event"] == "redis_unavailable"]
    assert [(line["level"], line["variable"]) for line in said] == [("warning", "REDIS_URL")]
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    (point,) = metric.data.data_points
    assert isinstance(point, NumberDataPoint)
    assert point.value >= 1
    meters.shutdown()
    client.close()


@pytest.fixture
def app() -> Celery:
    """The fleet's app on this test's own memory broker."""
    from workers import app  # noqa: PLC0415 - makes the process's app

    app.loader.import_default_modules()
    declare_topology(app)
    return app


@pytest.fixture
def run_charge(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, int], int]:
    """Run a charge that raises an error as a message with so many retries; return those of the message that follows."""

    def run(error: Exception, retries: int) -> int:
        def charge(_waybill: object) -> None:
            raise error

        monkeypatch.setattr(operations, "charge", charge)
        task = app.tasks["payments.charge"]
        arguments = [new_waybill().to_dict()]
        task.push_request(
            id="task-1",
            args=arguments,
            kwargs={},
            retries=retries,
            called_directly=False,
            is_eager=False,
            delivery_info={},
        )
        try:
            with pytest.raises(Exception, match="Retry in"):
                task(*arguments)
        finally:
            task.pop_request()
        with app.connection_for_read() as connection:
            message = Queue("payments", channel=connection.default_channel, no_declare=True).get()
            assert message is not None
            message.ack()
            return int(message.headers["retries"])

    return run


@pytest.mark.parametrize("retries", [0, 3, 8, 100])
def test_waiting_uses_up_no_attempt(run_charge: Callable[[Exception, int], int], retries: int) -> None:
    """While the breaker is open a step comes back with its attempts as they were, even at the last one."""
    assert run_charge(Waiting("payments: circuit breaker open", REST), retries) == retries


def test_a_failure_does_use_up_an_attempt(run_charge: Callable[[Exception, int], int]) -> None:
    """The counterpart: what failed is counted, or it would be tried for ever."""
    assert run_charge(Transient("payment provider: timeout"), 3) == 4
