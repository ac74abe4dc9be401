"""The recorder on a real broker and database: batches, crashes, and events that are none."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import kombu
from sqlalchemy import text

from shared.contracts.events import CONTENT_TYPE, Event, EventType, new_event
from shared.contracts.queues import EVENTS_EXCHANGE, EVENTS_QUEUE
from shared.contracts.waybill import Waybill
from shared.database import Database
from shared.messaging.events import publish_events
from tests.integration.nodes import Fleet, eventually, start
from workers.orders.models import Order

ORDERS = 40
NewWaybill = Callable[..., Waybill]
DONE = {EventType.PAYMENT_CAPTURED: {"transaction_id": "txn_1"}, EventType.DELIVERY_ASSIGNED: {"courier": "cou-ada"}}
TOLD = {EventType.CUSTOMER_NOTIFIED: {"kind": "completed"}}


def test_events_in_any_order_are_recorded_in_batches(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """Shuffled and repeated events of many orders: every timeline has each once, every status is right."""
    orders = [_place(fleet, new_waybill()) for _ in range(ORDERS)]
    events = [event for order in orders for event in _events(order)] * 2
    random.shuffle(events)
    fleet.declare()
    publish_events(fleet.app, *events)
    with fleet.running("recorder", LOG_LEVEL="DEBUG") as (node,):
        for order in orders:
            expected = sorted([*DONE, *TOLD, EventType.ORDER_COMPLETED])
            eventually(lambda o=order, e=expected: _timeline(fleet, o) == e, "the timeline is complete")
        assert {_status(fleet, order) for order in orders} == {"COMPLETED"}
        sizes = [json.loads(line)["events"] for line in node.logs().splitlines() if "events_recorded" in line]
    assert 1 < max(sizes) <= 200
    assert (
        fleet.rows("orders", "SELECT id FROM orders WHERE due_at IS NOT NULL AND id = :id", id=orders[0].order_id) == []
    )


def test_a_recorder_killed_within_a_batch_loses_no_event(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """kill -9 between reading a batch and committing it: the events are delivered again and recorded once."""
    waybill = _place(fleet, new_waybill())
    database = Database(fleet.database_url("orders"))
    fleet.declare()
    with fleet.running("recorder") as (node,):
        with database.engine.begin() as holder:
            holder.execute(text("SELECT 1 FROM orders WHERE id = :id FOR UPDATE"), {"id": waybill.order_id})
            publish_events(fleet.app, *_events(waybill))
            eventually(lambda: _waits_for_a_lock(fleet), "the recorder is within the batch")
            node.kill()
        assert _timeline(fleet, waybill) == []
        start(node)
        expected = sorted([*DONE, *TOLD, EventType.ORDER_COMPLETED])
        eventually(lambda: _timeline(fleet, waybill) == expected, "the timeline is complete")
    database.engine.dispose()
    assert fleet.count(EVENTS_QUEUE) == 0


def test_what_is_no_event_is_dead_lettered_and_stops_nothing(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """Undecodable, malformed and unknown to us: each in the dead letters as it came, the next event is recorded."""
    waybill = _place(fleet, new_waybill())
    good = _events(waybill)[0]
    envelope = good.to_cloudevent()
    bad: dict[str, bytes] = {
        "not utf-8": b"\xff\xfe",
        "not json": b"{",
        "no object": b"[]",
        "no subject": json.dumps({**envelope, "subject": None}).encode(),
        "no time": json.dumps({**envelope, "time": "yesterday"}).encode(),
    }
    fleet.declare()
    fleet.take("orders.events.dlq")
    with fleet.running("recorder") as (node,):
        for body in bad.values():
            _publish(fleet, body)
        _publish(fleet, b"\x80\x04}.", content_type="application/x-python-serialize")
        _publish(fleet, b"{}", compression="application/x-nothing")
        stray = new_waybill()
        publish_events(fleet.app, _events(stray)[0], good)
        eventually(lambda: _timeline(fleet, waybill) == [good.type], "the good one is recorded")
        eventually(lambda: fleet.count("orders.events.dlq") == len(bad) + 3, "the others are dead-lettered")
        assert node.container.process.running
    dead = fleet.take("orders.events.dlq")
    assert {*bad.values(), b"{}"} <= {_bytes(message) for message in dead}
    assert stray.order_id in str([message.body for message in dead])
    assert {message.headers["x-death"][0]["reason"] for message in dead} == {"rejected"}


def test_a_recorder_without_its_database_loses_no_event(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """While the table is out of reach the events wait; nothing of them is dead-lettered."""
    waybill = _place(fleet, new_waybill())
    fleet.declare()
    fleet.take("orders.events.dlq")
    with fleet.running("recorder") as (node,):
        fleet.admit("orders", allow=False)
        try:
            publish_events(fleet.app, *_events(waybill))
            eventually(lambda: "recording_postponed" in node.logs(), "the recorder said so")
        finally:
            fleet.admit("orders", allow=True)
        expected = sorted([*DONE, *TOLD, EventType.ORDER_COMPLETED])
        eventually(lambda: _timeline(fleet, waybill) == expected, "the timeline is complete")
    assert fleet.count("orders.events.dlq") == 0


def test_a_recorder_told_to_stop_records_what_it_has(fleet: Fleet, new_waybill: NewWaybill) -> None:
    """SIGTERM: exit code 0, and no event is left in hand."""
    waybill = _place(fleet, new_waybill())
    fleet.declare()
    with fleet.running("recorder") as (node,):
        publish_events(fleet.app, *_events(waybill))
        eventually(lambda: _timeline(fleet, waybill), "it records")
        node.kill("SIGTERM")
        assert node.container.process.wait(20) == 0
    recorded = set(_timeline(fleet, waybill))
    waiting = {json.loads(message.body)["type"] for message in fleet.take(EVENTS_QUEUE)}
    assert recorded | waiting == {*DONE, *TOLD, EventType.ORDER_COMPLETED}


def _place(fleet: Fleet, waybill: Waybill) -> Waybill:
    """Store an order as the API does, without its first event."""
    database = Database(fleet.database_url("orders"))
    with database.transaction() as session:
        order = Order(id=waybill.order_id, customer_id="cus_1", amount_cents=2590, currency="EUR")
        order.waybill, order.correlation_id = waybill.to_dict(), waybill.correlation_id
        session.add(order)
    database.engine.dispose()
    return waybill


def _events(waybill: Waybill) -> list[Event]:
    return [
        new_event(kind, waybill.order_id, source="tests", correlation_id=waybill.correlation_id, data=data)
        for kind, data in {**DONE, **TOLD}.items()
    ]


def _timeline(fleet: Fleet, waybill: Waybill) -> list[str]:
    query = "SELECT type FROM order_events WHERE order_id = :id"
    return sorted(row.type for row in fleet.rows("orders", query, id=waybill.order_id))


def _status(fleet: Fleet, waybill: Waybill) -> str:
    return str(fleet.rows("orders", "SELECT status FROM orders WHERE id = :id", id=waybill.order_id)[0].status)


def _waits_for_a_lock(fleet: Fleet) -> bool:
    query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(fleet.rows("orders", query))


def _publish(fleet: Fleet, body: bytes, **properties: Any) -> None:
    with fleet.app.connection_for_write() as connection:
        message = {"content_type": CONTENT_TYPE, "content_encoding": "utf-8", **properties}
        headers = {"compression": message.pop("compression")} if "compression" in message else {}
        channel = connection.default_channel
        raw = channel.prepare_message(body, headers=headers, **message)
        channel.basic_publish(raw, exchange=EVENTS_EXCHANGE, routing_key="tests", mandatory=True)


def _bytes(message: kombu.Message) -> bytes:
    return message.body.encode() if isinstance(message.body, str) else bytes(message.body)
