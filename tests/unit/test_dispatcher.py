"""How a request publishes its chain: it waits a moment for the broker, or not at all; the order is stored anyway."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from api import dispatcher as module
from api.dispatcher import PATIENCE, Dispatcher
from shared.contracts.saga import Dispatch
from shared.errors import Transient
from tests.conftest import UseSettings
from tests.support import json_logs, new_waybill, wait_until

SLACK = 0.2  # seconds that a loaded machine may add
WAY = Dispatch(new_waybill())


class Broker:
    """Stands in for the broker: says what a publish does, and counts them."""

    def __init__(self) -> None:
        self.published = 0
        self.does: Callable[[], Any] = lambda: None

    def publish(self, _app: Celery, _way: Dispatch) -> None:
        """Take a message, as the broker does at the moment."""
        self.published += 1
        self.does()

    def refuse(self) -> None:
        """Refuse the connection."""
        raise OperationalError("connection refused")


@pytest.fixture
def broker(house: UseSettings, monkeypatch: pytest.MonkeyPatch) -> Broker:
    """A broker that takes everything until told otherwise."""
    broker = Broker()
    monkeypatch.setattr(module, "dispatch", broker.publish)
    return broker


@pytest.fixture
def dispatcher() -> Iterator[Dispatcher]:
    """A process's dispatcher; its threads end with the test."""
    dispatcher = Dispatcher(Celery("tests", set_as_current=False))
    yield dispatcher
    dispatcher._pool.shutdown(cancel_futures=True)


def test_a_broker_that_answers_gets_the_chain(broker: Broker, dispatcher: Dispatcher) -> None:
    """With the broker there, the chain is published before the request is answered."""
    dispatcher.send(WAY)
    assert broker.published == 1


def test_nothing_is_published_before_there_is_something_to_publish_to(
    broker: Broker, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an empty broker the first chain waits for the declarations; late or failed, they hold no request."""
    declared = threading.Event()
    monkeypatch.setattr(module, "declare_topology", lambda _app: declared.wait(10))
    dispatcher.prepare()
    dispatcher.send(WAY)
    assert broker.published == 0
    declared.set()
    wait_until(lambda: broker.published == 1)

    def fail(_app: Celery) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(module, "declare_topology", fail)
    dispatcher.prepare()
    dispatcher.send(WAY)
    assert broker.published == 2


def test_a_broker_that_refuses_fails_no_request(broker: Broker, dispatcher: Dispatcher) -> None:
    """The order is stored: a warning with its id says that the sweeper will publish it."""
    broker.does = broker.refuse
    with json_logs() as lines:
        dispatcher.send(WAY)
        (line,) = [line for line in lines() if line["event"] == "dispatch_postponed"]
    assert line["order_id"] == WAY.waybill.order_id
    assert line["level"] == "warning"


def test_a_silent_broker_holds_a_request_for_a_moment_only(broker: Broker, dispatcher: Dispatcher) -> None:
    """A black hole is left alone after PATIENCE, the first time as well."""
    back = threading.Event()
    broker.does = back.wait
    try:
        for _ in range(2):
            started = time.monotonic()
            dispatcher.send(WAY)
            assert time.monotonic() - started < PATIENCE + SLACK
    finally:
        back.set()


def test_after_two_failures_nobody_waits(broker: Broker, dispatcher: Dispatcher) -> None:
    """The breaker keeps the next requests from waiting, and from piling up behind the broker."""
    back = threading.Event()
    broker.does = back.wait
    try:
        for _ in range(2):
            dispatcher.send(WAY)
        started = time.monotonic()
        for _ in range(5):
            dispatcher.send(WAY)
        assert time.monotonic() - started < SLACK
        assert broker.published == 2
    finally:
        back.set()


def test_a_broker_that_came_back_is_used_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, house: UseSettings
) -> None:
    """After a rest the next request tries, and from then on all publish."""
    monkeypatch.setattr(module, "_REST", 0.2)
    dispatcher = Dispatcher(Celery("tests", set_as_current=False))
    broker.does = broker.refuse
    for _ in range(3):
        dispatcher.send(WAY)
    assert broker.published == 2
    broker.does = lambda: None

    def publishes() -> bool:
        before = broker.published
        dispatcher.send(WAY)
        return broker.published > before

    wait_until(publishes)
    assert all(publishes() for _ in range(5))
    dispatcher._pool.shutdown()


def test_who_can_send_again_is_told_that_the_broker_is_away(broker: Broker, dispatcher: Dispatcher) -> None:
    """A webhook is not stored: its sender learns within PATIENCE, and at once while the broker was away just now."""
    back = threading.Event()
    started = time.monotonic()
    try:
        for _ in range(4):
            with pytest.raises(Transient):
                dispatcher.publish(lambda _app: back.wait())
    finally:
        back.set()
    assert time.monotonic() - started < 2 * PATIENCE + SLACK


def test_an_error_of_ours_is_not_hidden(broker: Broker, dispatcher: Dispatcher) -> None:
    """Only a broker that is away is forgiven; a bug must show."""

    def bug() -> None:
        raise TypeError("a bug")

    broker.does = bug
    with pytest.raises(TypeError, match="a bug"):
        dispatcher.send(WAY)


def test_requests_publish_side_by_side(broker: Broker, dispatcher: Dispatcher) -> None:
    """No lock is held while the broker is asked: as many publish at once as there are threads."""
    together = threading.Barrier(module._THREADS)
    broker.does = lambda: together.wait(PATIENCE)
    with json_logs() as lines:
        threads = [threading.Thread(target=dispatcher.send, args=(WAY,)) for _ in range(module._THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [line for line in lines() if line["event"] == "dispatch_postponed"] == []


def test_called_eagerly_it_runs_in_the_calling_thread(broker: Broker, dispatcher: Dispatcher) -> None:
    """Without a broker there is nothing to be patient about: the whole saga runs within the call."""
    dispatcher._celery.conf.task_always_eager = True
    callers: list[str] = []
    broker.does = lambda: callers.append(threading.current_thread().name)
    dispatcher.send(WAY)
    assert callers == [threading.current_thread().name]
