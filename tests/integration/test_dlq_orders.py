"""The dead-letter desk beside a fleet at work: what becomes of the orders, and what Flower shows of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from shared.contracts.events import EventType, new_event
from shared.contracts.queues import EVENTS_QUEUE, Queue, TaskName
from tests.integration.desk import DEAD, REST, Desk, editor
from tests.integration.nodes import Fleet, eventually

FLOWER = {"FLOWER_UNAUTHENTICATED_API": "true"}


@pytest.fixture(scope="module", autouse=True)
def _at_work(fleet: Fleet) -> Iterator[None]:
    """Recorder, Flower and every worker; a step that fails is parked after one retry."""
    with fleet.running(*map(str, Queue), "recorder", "flower", STEP_MAX_RETRIES="1", GATEWAY_TIMEOUT="1", **FLOWER):
        yield


@pytest.fixture(autouse=True)
def _works_again(fleet: Fleet) -> None:
    """The provider works, and the breaker has forgotten the last test's outage."""
    fleet.faults(error_rate=0)
    fleet.forget_keys()


def test_an_outage_ends_with_every_order_completed(fleet: Fleet, desk: Desk) -> None:
    """Down, parked, seen, up again, canary, the rest: one capture each, and the timeline says who did it."""
    order_ids = desk.park(4)
    rows = [row.split() for row in desk.run("list").stdout.splitlines()]
    assert ["payments", "4"] in [row[:2] for row in rows]
    listed = desk.tell("list", "payments")
    assert {row["order"] for row in listed} == set(order_ids)
    assert {(row["task"], row["attempts"], row["reason"]) for row in listed} == {("payments.charge", 2, "rejected")}
    assert all("HTTP 503" in row["error"] and row["died_at"] for row in listed)
    (shown,) = desk.tell("show", listed[0]["id"], "--body")
    assert shown["rest_of_chain"] == list(REST)
    assert "in _call" in shown["traceback"]
    assert [entry["type"] for entry in shown["timeline"]] == ["order.placed", "step.retrying", "step.parked"]
    assert shown["body"][0][0]["payment_method"] == "***"
    fleet.faults(error_rate=0)
    done = desk.run("requeue", "--all", "payments", "--since", "1h", "--canary", "2")
    assert (done.exit_code, done.stdout.strip()) == (0, "4 put back")
    for order_id in order_ids:
        eventually(lambda order_id=order_id: desk.status(order_id) == "COMPLETED", "the order is completed")
        assert desk.money(order_id) == ["charge"]
        requeued = (order_id, EventType.DEADLETTER_REQUEUED)
        eventually(lambda requeued=requeued: desk.timeline(*requeued), "the timeline says so")
        (audit,) = desk.timeline(*requeued)
        assert "@" in audit["by"]
        assert audit["task_id"] in {row["id"] for row in listed}
    assert fleet.count(DEAD) == 0


def test_a_canary_that_dies_again_keeps_the_rest_where_it_is(fleet: Fleet, desk: Desk) -> None:
    """The provider is still down: one attempt tells, the other letters were not touched."""
    desk.park(3)
    before = [row["id"] for row in desk.tell("list", "payments")]
    line = desk.refuse("requeue", "--all", "payments", "--canary", "1")
    assert f"{before[0]}: the canary died again. The rest was not touched." in line
    eventually(lambda: fleet.count(DEAD) == 3, "all are dead letters")
    assert [row["id"] for row in desk.tell("list", "payments")] == [*before[1:], before[0]]


def test_an_edited_waybill_goes_on_where_it_stopped(fleet: Fleet, desk: Desk, tmp_path: Path) -> None:
    """An address that nobody serves is corrected by hand; the order completes and says who did it."""
    (order_id,) = desk.park(1, area="atlantis")
    fleet.faults(error_rate=0)
    (row,) = desk.tell("list", "payments")
    change = editor(tmp_path, "waybill['address']['area'] = 'north'")
    assert desk.tell("edit", row["id"], EDITOR=change) == {"edited": row["id"], "count": 1}
    eventually(lambda: desk.status(order_id) == "COMPLETED", "the order is completed")
    eventually(lambda: desk.timeline(order_id, EventType.DEADLETTER_EDITED), "the timeline says so")
    (audit,) = desk.timeline(order_id, EventType.DEADLETTER_EDITED)
    assert "@" in audit["by"]
    assert fleet.count(DEAD) == 0


def test_a_dropped_letter_leaves_no_order_hanging(fleet: Fleet, desk: Desk) -> None:
    """Kept in a file of its owner's, the order undone and paid back, the timeline says who and why."""
    waybill = desk.store()
    fleet.publish(TaskName.CHARGE, waybill)
    eventually(lambda: desk.status(waybill.order_id) == "PAID", "the order is paid")
    body = json.dumps([[waybill.to_dict()], {}, {}]).encode()
    headers = {"id": "lost", "task": str(TaskName.ASSIGN)}
    desk.bury_raw(body, "delivery", headers=headers, content_type="application/json", content_encoding="utf-8")
    told = desk.tell("drop", "lost", "--reason", "customer called")
    file = Path(told["export"])
    assert (told["dropped"], told["cancelled"]) == (1, [waybill.order_id])
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["id"] == "lost"
    eventually(lambda: desk.status(waybill.order_id) == "CANCELLED", "the order is cancelled")
    assert desk.money(waybill.order_id) == ["charge", "refund"]
    (audit,) = desk.timeline(waybill.order_id, EventType.DEADLETTER_DROPPED)
    assert (audit["reason"], audit["step"]) == ("customer called", "delivery.assign")
    assert "@" in audit["by"]
    assert fleet.count("delivery.dlq") == 0


def test_dropping_what_is_left_of_a_completed_order_does_not_undo_it(fleet: Fleet, desk: Desk) -> None:
    """The sweeper may have sent a second copy, which did the work; the first is litter."""
    (order_id,) = desk.park(1)
    fleet.faults(error_rate=0)
    (row,) = desk.tell("list", "payments")
    (copy,) = fleet.take(DEAD)
    desk.publish(copy, "payments", DEAD)
    eventually(lambda: desk.status(order_id) == "COMPLETED", "the copy completes it")
    assert desk.tell("drop", row["id"], "--reason", "done already")["cancelled"] == []
    eventually(lambda: desk.timeline(order_id, EventType.DEADLETTER_DROPPED), "the timeline says so")
    assert desk.status(order_id) == "COMPLETED"
    assert desk.money(order_id) == ["charge"]


def test_an_event_goes_back_to_the_recorder(fleet: Fleet, desk: Desk) -> None:
    """It died while its order could not be found, say; put back, it is on the timeline."""
    order_id = desk.store().order_id
    event = new_event(EventType.PAYMENT_CAPTURED, order_id, source="test", correlation_id="dlq", data={})
    body = json.dumps(event.to_cloudevent()).encode()
    content = {"content_type": "application/cloudevents+json", "content_encoding": "utf-8"}
    desk.bury_raw(body, EVENTS_QUEUE, message_id=event.id, **content)
    (row,) = desk.tell("list", EVENTS_QUEUE)
    assert (row["id"], row["order"], row["task"], row["reason"]) == (event.id, order_id, None, "rejected")
    assert desk.tell("requeue", "--all", EVENTS_QUEUE, "--canary", "1")["requeued"] == 1
    eventually(lambda: desk.status(order_id) == "PAID", "it is recorded")
    assert fleet.count(f"{EVENTS_QUEUE}.dlq") == 0


def test_flower_shows_a_dead_letter_as_a_failed_task_of_the_same_id(fleet: Fleet, desk: Desk) -> None:
    """The id in Flower is the id at the desk; put back, the task runs under it and succeeds."""
    (order_id,) = desk.park(1)
    (row,) = desk.tell("list", "payments")
    eventually(lambda: flower(fleet, f"task/info/{row['id']}").get("rejected"), "Flower saw it die")
    died = flower(fleet, f"task/info/{row['id']}")
    assert (died["state"], died["args"]) == ("FAILURE", f"({order_id})")
    fleet.faults(error_rate=0)
    assert desk.tell("requeue", row["id"])["requeued"] == 1
    eventually(lambda: flower(fleet, f"task/info/{row['id']}").get("state") == "SUCCESS", "Flower saw it succeed")


def flower(fleet: Fleet, path: str) -> Any:
    """Ask Flower."""
    url = f"http://127.0.0.1:{fleet.stack.ports.flower}/api/{path}"
    answer = urllib3.request("GET", url, retries=False, timeout=5)
    return answer.json() if answer.status == 200 else {}
