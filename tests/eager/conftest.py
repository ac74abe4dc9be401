"""The whole fleet in one process: every task runs where it is published, the recorder when a test says so."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.worker import state
from flask.testing import FlaskClient
from kombu import Message, Queue

from api import create_app
from shared.contracts.waybill import Waybill
from shared.database import get_database
from shared.messaging import memory
from shared.messaging.app import declare_topology
from shared.messaging.topology import EVENTS, TRANSPORT_OPTIONS
from tests.conftest import UseSettings
from tests.support import new_body, wait_until
from workers.delivery.models import Courier
from workers.delivery.roster import load_roster
from workers.notifications.models import Notification
from workers.orders import operations
from workers.orders.recorder import Recorder
from workers.payments.gateways import payment_gateway
from workers.payments.gateways.memory import MemoryGateway

ROSTER = Path(__file__).parents[2] / "deploy" / "couriers.json"
_COPY = "copy.of.events"


@dataclass(frozen=True)
class Saga:
    """An order's way through the house, and what can be seen of it."""

    app: Celery
    client: FlaskClient
    gateway: MemoryGateway
    use: UseSettings

    def place(self, *, headers: dict[str, str] | None = None, **changes: Any) -> str:
        """Place an order over HTTP, let every step run and the recorder record; return its id."""
        answer = self.client.post("/v1/orders", json=new_body(**changes), headers=headers)
        assert answer.status_code == 202, answer.text
        self.drain()
        return str(answer.json["id"])

    def store(self, **changes: Any) -> Waybill:
        """Store an order whose chain was not published; return its waybill."""
        _, way = operations.place(new_body(**changes), "corr-1")
        return way.waybill

    def cancel(self, order_id: str) -> None:
        """Cancel over HTTP, from another thread: a step or a request may be under way in this one."""
        with ThreadPoolExecutor(1) as other:
            answer = other.submit(self.client.post, f"/v1/orders/{order_id}/cancel").result()
        assert answer.status_code == 202, answer.text

    def run(self, task: str, waybill: Waybill) -> None:
        """Run one step as if its message, the last of its chain, arrived now."""
        self.app.tasks[task].apply_async((waybill.to_dict(),))

    def drain(self) -> None:
        """Record until no event is left."""
        with contextlib.suppress(TimeoutError):
            for _ in Recorder(self.app).consume(limit=None, timeout=0.04, safety_interval=0.02):
                pass

    def order(self, order_id: str) -> dict[str, Any]:
        """Return the order as a client sees it."""
        return self.client.get(f"/v1/orders/{order_id}").json  # type: ignore[no-any-return]

    def status(self, order_id: str) -> str:
        """Return its status."""
        return str(self.order(order_id)["status"])

    def timeline(self, order_id: str) -> list[dict[str, Any]]:
        """Return its events as a client sees them."""
        return self.client.get(f"/v1/orders/{order_id}/events").json["results"]  # type: ignore[no-any-return]

    def events(self, order_id: str) -> list[str]:
        """Return the types of its events, in time."""
        return [event["type"] for event in self.timeline(order_id)]

    def published(self) -> list[dict[str, Any]]:
        """Return every event published since the start of the test, as it travelled."""
        return [message.payload for message in self.take(_COPY)]

    def take(self, queue: str) -> list[Message]:
        """Take every message out of a queue."""
        with self.app.connection_for_read() as connection:
            bound = Queue(queue, channel=connection.default_channel)
            messages = list(iter(lambda: bound.get(no_ack=True, accept=["json", _CLOUDEVENTS]), None))
            for message in messages:
                _ = message.payload  # decoded while there is a channel
        return messages

    @property
    def money(self) -> tuple[int, int]:
        """How many charges moved money, and how many refunds."""
        kinds = [entry.kind for entry in self.gateway.entries(0, 1000)]
        return kinds.count("charge"), kinds.count("refund")

    @property
    def booked(self) -> int:
        """How many open bookings all couriers have."""
        with get_database("delivery").transaction() as session:
            return sum(courier.open_bookings for courier in session.query(Courier))

    def told(self, order_id: str) -> list[str]:
        """What the customer was told."""
        with get_database("notifications").transaction() as session:
            sent = session.query(Notification).filter(Notification.order_id == order_id).order_by(Notification.sent_at)
            return [each.kind for each in sent if each.sent_at]


_CLOUDEVENTS = "application/cloudevents+json"


@pytest.fixture
def saga(house: UseSettings) -> Iterator[Saga]:
    """The fleet, eager; provider, broker and Redis in memory, retries at once."""
    house(gateway_timeout=0.001, step_max_retries=3)
    from workers import app  # noqa: PLC0415 - makes the process's app, which reads the settings

    memory.register()
    app.conf.update(
        broker_url="memory://localhost/", broker_transport_options=TRANSPORT_OPTIONS[True], task_always_eager=True
    )
    app.set_current()
    app.set_default()
    app.loader.import_default_modules()
    declare_topology(app)
    with app.connection_for_write() as connection:
        Queue(_COPY, EVENTS, routing_key="#", channel=connection.default_channel).declare()
    load_roster(ROSTER)
    gateway = payment_gateway()
    assert isinstance(gateway, MemoryGateway)
    yield Saga(app, create_app(celery=app).test_client(), gateway, house)
    app.conf.task_always_eager = False


@pytest.fixture
def worker(saga: Saga) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Let messages travel, and serve every queue in threads of this process within a block."""
    saga.app.conf.task_always_eager = False
    return lambda: _serve(saga.app)


_numbers = itertools.count(1)


@contextlib.contextmanager
def _serve(app: Celery) -> Iterator[None]:
    ready = threading.Event()

    def on_ready(consumer: Any) -> None:
        drain = consumer.connection.drain_events  # Celery waits 2 s for an event before it looks whether to stop
        consumer.connection.drain_events = lambda **_: drain(timeout=0.05)
        ready.set()

    controller = app.WorkController(
        pool="threads",
        hostname=f"eager{next(_numbers)}@localhost",
        ready_callback=on_ready,
        without_heartbeat=True,
        without_mingle=True,
        without_gossip=True,
    )
    thread = threading.Thread(target=controller.start, daemon=True)
    thread.start()
    try:
        wait_until(ready.is_set)
        yield
    finally:
        state.should_stop = 0
        thread.join(10)
        state.should_stop = None
        assert not thread.is_alive()
