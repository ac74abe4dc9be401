"""The dead-letter desk as its operator meets it: the command itself, against the real fleet."""

from __future__ import annotations

import json
import os
import pickle
import pty
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Producer
from pytest_celery import CeleryTestCluster

from shared.contracts.events import EventType, new_event
from shared.contracts.queues import EVENTS_QUEUE, Queue, TaskName, dead_letter_queue
from shared.deadletters.letters import QUEUES
from stacks.local import ROOT
from stacks.processes import free_port, wait_for
from tests.integration.conftest import make_waybill
from tests.integration.nodes import Fleet, eventually
from tests.support import BODY
from workers.orders import operations

CELERY = [sys.executable, "-m", "celery", "-A", "workers", "dlq"]
REST = (TaskName.ASSIGN, TaskName.NOTIFY)
DEAD = "payments.dlq"
HOLDING = 20  # letters of a run that is to be disturbed


@pytest.fixture(autouse=True)
def _no_letters(fleet: Fleet) -> None:
    """Start with empty queues, declared anew where a test took them away."""
    fleet.declare()
    for queue in (*QUEUES, *map(dead_letter_queue, QUEUES)):
        fleet.take(queue, 100_000)


@pytest.fixture
def orders(fleet: Fleet) -> Iterator[CeleryTestCluster]:
    """The recorder and every worker; a step that fails is parked after one retry."""
    fleet.faults(error_rate=0)
    fleet.forget_keys()  # the breaker remembers the last test's outage
    with fleet.running(*map(str, Queue), "recorder", STEP_MAX_RETRIES="1", GATEWAY_TIMEOUT="1") as cluster:
        yield cluster


def dlq(fleet: Fleet, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run ``celery -A workers dlq``."""
    environment = {**fleet.stack.environment, **extra}
    return subprocess.run(
        [*CELERY, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def answer(fleet: Fleet, *arguments: str, **extra: str) -> Any:
    """Run it with ``--json`` and return what it says."""
    done = dlq(fleet, *arguments, "--json", **extra)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    """Check that it ended with one clear line."""
    assert done.returncode not in (0, 130)
    assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def bury(fleet: Fleet, count: int, queue: str = "payments", **options: Any) -> list[str]:
    """Send tasks and reject them as a worker does; return their ids. Nobody may consume the queue."""
    ids = [fleet.publish(TaskName.CHARGE, make_waybill(), *REST, **options) for _ in range(count)]
    with fleet.app.connection_for_read() as connection:
        channel = connection.default_channel
        for _ in range(count):
            channel.basic_reject(channel.basic_get(queue).delivery_tag, requeue=False)
    eventually(lambda: fleet.count(dead_letter_queue(queue)) == count, "they are dead letters")
    return ids


def bury_raw(fleet: Fleet, body: bytes, queue: str = "payments", **properties: Any) -> None:
    """Put a message among the dead letters as it is."""
    with fleet.app.connection_for_write() as connection:
        Producer(connection).publish(body, exchange="", routing_key=dead_letter_queue(queue), **properties)


def park(fleet: Fleet, count: int, area: str = "north") -> list[str]:
    """Place orders while the provider is down, until each is parked; too few for its breaker. Return their ids."""
    fleet.faults(error_rate=1)
    ids = [place(fleet, area) for _ in range(count)]
    for order_id in ids:
        eventually(lambda order_id=order_id: status(fleet, order_id) == "AWAITING_PAYMENT", "the order is parked")
    eventually(lambda: fleet.count(DEAD) == count, "each has a dead letter")
    return ids


def place(fleet: Fleet, area: str = "north") -> str:
    """Place an order as the API does."""
    with fleet.inside():
        order, _ = operations.place({**BODY, "address": {**BODY["address"], "area": area}}, "dlq")
    fleet.publish(TaskName.CHARGE, operations.parse_waybill(order.waybill), *REST)
    return str(order.id)


def status(fleet: Fleet, order_id: str) -> str:
    """Return an order's status."""
    ((found,),) = fleet.rows("orders", "SELECT status FROM orders WHERE id = :id", id=order_id)
    return str(found)


def timeline(fleet: Fleet, order_id: str, event_type: str) -> list[dict[str, Any]]:
    """Return the data of an order's events of one type."""
    statement = "SELECT data FROM order_events WHERE order_id = :id AND type = :type"
    return [data for (data,) in fleet.rows("orders", statement, id=order_id, type=event_type)]


def money(fleet: Fleet, order_id: str) -> list[str]:
    """Return what moved for an order, in order."""
    statement = "SELECT operation_key, transaction_id FROM payments WHERE order_id = :id"
    ((key, transaction),) = fleet.rows("payments", statement, id=order_id)
    entries = fleet.ledger.entries()
    return [entry["kind"] for entry in entries if key == entry["idempotency_key"] or transaction in entry.values()]


def ids_in(fleet: Fleet, queue: str) -> list[str]:
    """Return the task ids in a queue; afterwards it is as it was."""
    with fleet.app.connection_for_read() as connection:
        channel = connection.default_channel
        messages = list(iter(lambda: channel.basic_get(queue), None))
    eventually(lambda: fleet.count(queue) == len(messages), "what was looked at is back")
    return [message.properties["application_headers"]["id"] for message in messages]


def test_an_outage_ends_with_every_order_completed(fleet: Fleet, orders: CeleryTestCluster) -> None:
    """Down, parked, seen, up again, canary, the rest: one capture each, and the timeline says who did it."""
    order_ids = park(fleet, 4)
    ((_, count),) = [row.split()[:2] for row in dlq(fleet, "list").stdout.splitlines() if row.startswith("payments  ")][
        :1
    ]
    assert count == "4"
    listed = answer(fleet, "list", "payments")
    assert {row["order"] for row in listed} == set(order_ids)
    assert {(row["task"], row["attempts"], row["reason"]) for row in listed} == {("payments.charge", 2, "rejected")}
    assert all("HTTP 503" in row["error"] and row["died_at"] for row in listed)
    (shown,) = answer(fleet, "show", listed[0]["id"], "--body")
    assert shown["rest_of_chain"] == list(REST)
    assert "in _call" in shown["traceback"]
    assert [entry["type"] for entry in shown["timeline"]] == ["order.placed", "step.retrying", "step.parked"]
    assert shown["body"][0][0]["payment_method"] == "***"
    fleet.faults(error_rate=0)
    done = dlq(fleet, "requeue", "--all", "payments", "--since", "1h", "--canary", "2")
    assert (done.returncode, done.stdout.strip()) == (0, "4 put back")
    for order_id in order_ids:
        eventually(lambda order_id=order_id: status(fleet, order_id) == "COMPLETED", "the order is completed")
        assert money(fleet, order_id) == ["charge"]
        eventually(lambda order_id=order_id: timeline(fleet, order_id, EventType.DEADLETTER_REQUEUED), "it says so")
        (audit,) = timeline(fleet, order_id, EventType.DEADLETTER_REQUEUED)
        assert "@" in audit["by"]
        assert audit["task_id"] in {row["id"] for row in listed}
    assert fleet.count(DEAD) == 0


def test_a_canary_that_dies_again_keeps_the_rest_where_it_is(fleet: Fleet, orders: CeleryTestCluster) -> None:
    """The provider is still down: one attempt tells, the other letters were not touched."""
    park(fleet, 3)
    before = [row["id"] for row in answer(fleet, "list", "payments")]
    done = dlq(fleet, "requeue", "--all", "payments", "--canary", "1")
    assert done.returncode == 1
    assert f"{before[0]}: the canary died again. The rest was not touched." in done.stderr
    eventually(lambda: fleet.count(DEAD) == 3, "all are dead letters")
    assert [row["id"] for row in answer(fleet, "list", "payments")] == [*before[1:], before[0]]


def test_a_canary_without_an_outcome_keeps_the_rest_where_it_is(fleet: Fleet) -> None:
    """Nobody works: after its time the command says so."""
    order_id = place(fleet)
    place(fleet)
    with fleet.app.connection_for_read() as connection:
        for _ in range(2):
            connection.default_channel.basic_reject(
                connection.default_channel.basic_get("payments").delivery_tag, False
            )
    eventually(lambda: fleet.count(DEAD) == 2, "both are dead letters")
    done = dlq(fleet, "requeue", "--all", "payments", "--canary", "1", "--canary-timeout", "1")
    assert done.returncode == 1
    assert "no outcome after 1 s. The rest was not touched." in done.stderr
    assert (fleet.count("payments"), fleet.count(DEAD)) == (1, 1)
    assert order_id


KILL = """
import os, signal, sys
from shared.deadletters.store import Box
point, number = sys.argv.pop(1), int(sys.argv.pop(1))
name, when = point.split()
calls, whole = [], getattr(Box, name)
def killed(*arguments):
    calls.append(1)
    if len(calls) == number and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = whole(*arguments)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(Box, name, killed)
sys.argv[0] = "celery"
from celery.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("point", ["put_back before", "put_back after", "take_out before", "take_out after"])
def test_killed_at_any_point_no_letter_is_lost(fleet: Fleet, point: str, number: int) -> None:
    """Each is in its queue or among the dead letters, at most the one in hand in both; the next run ends the work."""
    ids = bury(fleet, 5)
    command = [sys.executable, "-c", KILL, point, str(number), *CELERY[3:], "requeue", "--all", "payments"]
    killed = subprocess.run(command, env=fleet.stack.environment, cwd=ROOT, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    eventually(lambda: fleet.count("payments") + fleet.count(DEAD) >= 5, "the dead one's letters are back")
    alive, dead = ids_in(fleet, "payments"), ids_in(fleet, DEAD)
    assert sorted({*alive, *dead}) == sorted(ids)
    assert len(alive) + len(dead) == (6 if point in {"put_back after", "take_out before"} else 5)
    assert [each for each in ids if each in set(dead)] == dead, "in the order in which they died"
    assert answer(fleet, "requeue", "--all", "payments")["requeued"] == len(dead)
    assert set(ids_in(fleet, "payments")) == set(ids)
    assert fleet.count(DEAD) == 0


def test_killed_at_random_no_letter_is_lost(fleet: Fleet) -> None:
    """Ten runs, each killed somewhere between its start and its end; the last one finds the rest."""
    pick, ids = random.Random(20260101), bury(fleet, 200)
    for _ in range(10):
        command = [*CELERY, "requeue", "--all", "payments", "--rate", "150"]
        waiting = fleet.count("payments")
        with subprocess.Popen(command, env=fleet.stack.environment, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            wait_for(lambda: fleet.count("payments") > waiting or process.poll() is not None, 30, "it works")  # noqa: B023
            time.sleep(pick.uniform(0, 0.15))  # the moment is the point
            process.kill()
        eventually(lambda: fleet.count("payments") + fleet.count(DEAD) >= len(ids), "its letters are back")
        assert fleet.count("payments") + fleet.count(DEAD) <= len(ids) + 10, "one in hand for each run"
    assert dlq(fleet, "requeue", "--all").returncode == 0
    assert fleet.count(DEAD) == 0
    assert set(ids_in(fleet, "payments")) == set(ids)


def test_interrupted_it_says_how_far_it_came(fleet: Fleet) -> None:
    """Ctrl-C: exit code 130, a true count, every letter on one side or the other and none on both."""
    ids = bury(fleet, HOLDING)
    command = [*CELERY, "requeue", "--all", "payments", "--rate", "10"]
    with subprocess.Popen(command, env=fleet.stack.environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: fleet.count("payments") >= 2, "some are put back")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    alive = ids_in(fleet, "payments")
    assert process.returncode == 130
    assert said.strip() == f"Interrupted: {len(alive)} put back, {HOLDING - len(alive)} still dead letters."
    assert 2 <= len(alive) < HOLDING
    eventually(lambda: fleet.count(DEAD) == HOLDING - len(alive), "the others are back")
    assert alive + ids_in(fleet, DEAD) == ids


def test_thousands_are_listed_and_none_is_taken(fleet: Fleet) -> None:
    """Every one, oldest first, and afterwards the same again; whoever lists at the same time sees all as well."""
    ids = bury(fleet, 2_000)
    command = [*CELERY, "list", "payments", "--json"]
    both = [
        subprocess.Popen(command, env=fleet.stack.environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        listed, _ = process.communicate(timeout=60)
        assert [row["id"] for row in json.loads(listed)] == ids
    assert fleet.count(DEAD) == len(ids)
    table = dlq(fleet, "list", "payments").stdout.splitlines()
    assert [row.split()[0] for row in table[2:] if row] == ids
    assert fleet.count(DEAD) == len(ids)


def test_two_operators_do_not_get_into_each_others_way(fleet: Fleet) -> None:
    """While one puts letters back slowly, the other is told so instead of being shown half of them."""
    bury(fleet, HOLDING)
    command = [*CELERY, "requeue", "--all", "payments", "--rate", "1"]
    with subprocess.Popen(command, env=fleet.stack.environment, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        eventually(lambda: fleet.count("payments") >= 1, "the first is at work")
        done = dlq(fleet, "list", "payments")
        process.kill()
    refused(done, "payments: another `dlq` command has its dead letters in hand")
    eventually(lambda: fleet.count("payments") + fleet.count(DEAD) == HOLDING, "all are there")


def test_an_id_means_every_letter_that_has_it(fleet: Fleet) -> None:
    """A task may die twice; both go back, or neither."""
    (task_id,) = bury(fleet, 1)
    (copy,) = fleet.take(DEAD)
    with fleet.app.connection_for_write() as connection:
        for _ in range(2):
            Producer(connection).publish(
                copy.body, exchange="", routing_key=DEAD, headers=copy.headers, content_type=copy.content_type
            )
    assert [row["id"] for row in answer(fleet, "list", "payments")] == [task_id, task_id]
    assert len(answer(fleet, "show", task_id)) == 2
    assert answer(fleet, "requeue", task_id)["requeued"] == 2
    assert (fleet.count("payments"), fleet.count(DEAD)) == (2, 0)


def test_a_poisoned_message_is_shown_and_not_run(fleet: Fleet, tmp_path: Path) -> None:
    """A pickle would run whatever it says on the operator's machine; an escape sequence would write on the screen."""

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "went off"),)

    bomb = pickle.dumps([[Bomb()], {}, {}])
    headers = {"id": "bomb\x1b[2J", "task": "[/red] payments.charge", "x-death": "junk", "argsrepr": "('tok_secret',)"}
    bury_raw(fleet, bomb, headers=headers, content_type="application/x-python-serialize", content_encoding="binary")
    assert "\x1b" not in dlq(fleet, "list", "payments").stdout
    (row,) = answer(fleet, "list", "payments")
    assert row["reason"].startswith("malformed: ")
    shown = dlq(fleet, "show", row["id"], "--body").stdout
    assert "bomb" in shown
    assert "secret" not in shown
    assert "\x1b" not in shown
    refused(dlq(fleet, "requeue", row["id"]), "it would die again. Use `dlq edit` or `dlq drop`.")
    file = tmp_path / "bomb.jsonl"
    assert answer(fleet, "drop", row["id"], "--reason", "poison", "--export", str(file))["dropped"] == 1
    assert answer(fleet, "import", str(file))["imported"] == 1
    (back,) = fleet.take(DEAD)
    assert back.body == bomb
    assert not (tmp_path / "went off").exists()


def editor(tmp_path: Path, python: str) -> str:
    """Return an ``$EDITOR`` that runs Python on the ``waybill`` in the file."""
    script = tmp_path / f"{uuid.uuid4()}.py"
    script.write_text(
        "import json, pathlib, sys\nfile = pathlib.Path(sys.argv[1])\nwaybill = json.loads(file.read_text())\n"
        + (python or "sys.exit()")
        + "\nfile.write_text(json.dumps(waybill))\nimport os; os.utime(file, (1, 1))\n"
    )
    return f"{sys.executable} {script}"


def test_an_edited_waybill_goes_on_where_it_stopped(fleet: Fleet, orders: CeleryTestCluster, tmp_path: Path) -> None:
    """An address that nobody serves is corrected by hand; the order completes and says who did it."""
    (order_id,) = park(fleet, 1, area="atlantis")
    fleet.faults(error_rate=0)
    (row,) = answer(fleet, "list", "payments")
    change = editor(tmp_path, "waybill['address']['area'] = 'north'")
    assert answer(fleet, "edit", row["id"], EDITOR=change) == {"edited": row["id"], "count": 1}
    eventually(lambda: status(fleet, order_id) == "COMPLETED", "the order is completed")
    eventually(lambda: timeline(fleet, order_id, EventType.DEADLETTER_EDITED), "the timeline says so")
    (audit,) = timeline(fleet, order_id, EventType.DEADLETTER_EDITED)
    assert "@" in audit["by"]
    assert fleet.count(DEAD) == 0


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("file.write_text('{'); os = __import__('os'); os.utime(file, (1, 1)); sys.exit()", "Nothing was changed"),
        ("waybill['amount_cents'] = 'many'", "wrong or missing: amount_cents. Nothing was changed"),
        (f"waybill['order_id'] = '{uuid.uuid4()}'", "order_id is another order's. Nothing was changed"),
        ("", "not saved, so nothing was changed"),
        ("sys.exit(3)", "Editing failed"),
    ],
)
def test_a_bad_edit_changes_nothing(fleet: Fleet, tmp_path: Path, python: str, words: str) -> None:
    """One line says what is wrong; the letter stays as it is."""
    (task_id,) = bury(fleet, 1)
    refused(dlq(fleet, "edit", task_id, EDITOR=editor(tmp_path, python)), words)
    assert (fleet.count("payments"), fleet.count(DEAD)) == (0, 1)


def test_a_dropped_letter_leaves_no_order_hanging(fleet: Fleet, orders: CeleryTestCluster) -> None:
    """Kept in a file of its owner's, the order undone and paid back, the timeline says who and why."""
    delivery = next(node for node in orders if node.name() == "delivery")
    delivery.kill()
    order_id = place(fleet)
    eventually(lambda: status(fleet, order_id) == "PAID", "the order is paid")
    with fleet.app.connection_for_read() as connection:
        channel = connection.default_channel
        message = next(each for each in iter(lambda: channel.basic_get("delivery"), None))
        channel.basic_reject(message.delivery_tag, requeue=False)
    eventually(lambda: fleet.count("delivery.dlq") == 1, "it is a dead letter")
    delivery.container.start()
    (row,) = answer(fleet, "list", "delivery")
    told = answer(fleet, "drop", row["id"], "--reason", "customer called")
    file = Path(told["export"])
    assert (told["dropped"], told["cancelled"]) == (1, [order_id])
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["id"] == row["id"]
    eventually(lambda: status(fleet, order_id) == "CANCELLED", "the order is cancelled")
    assert money(fleet, order_id) == ["charge", "refund"]
    (audit,) = timeline(fleet, order_id, EventType.DEADLETTER_DROPPED)
    assert (audit["reason"], audit["step"]) == ("customer called", "delivery.assign")
    assert "@" in audit["by"]
    assert fleet.count("delivery.dlq") == 0


def test_dropping_what_is_left_of_a_completed_order_does_not_undo_it(fleet: Fleet, orders: CeleryTestCluster) -> None:
    """The sweeper may have sent a second copy, which did the work; the first is litter."""
    (order_id,) = park(fleet, 1)
    fleet.faults(error_rate=0)
    (row,) = answer(fleet, "list", "payments")
    (copy,) = fleet.take(DEAD)
    for queue in ("payments", DEAD):
        with fleet.app.connection_for_write() as connection:
            Producer(connection).publish(
                copy.body, exchange="", routing_key=queue, headers=copy.headers, content_type=copy.content_type,
                content_encoding="utf-8",
            )  # fmt: skip
    eventually(lambda: status(fleet, order_id) == "COMPLETED", "the copy completes it")
    assert answer(fleet, "drop", row["id"], "--reason", "done already")["cancelled"] == []
    eventually(lambda: timeline(fleet, order_id, EventType.DEADLETTER_DROPPED), "the timeline says so")
    assert status(fleet, order_id) == "COMPLETED"
    assert money(fleet, order_id) == ["charge"]


def test_drop_needs_a_reason(fleet: Fleet) -> None:
    """Nothing is dropped without one."""
    (task_id,) = bury(fleet, 1)
    done = dlq(fleet, "drop", task_id)
    assert (done.returncode, fleet.count(DEAD)) == (2, 1)
    assert "Missing option '--reason'" in done.stderr


def test_what_is_exported_comes_back_as_it_was(fleet: Fleet, tmp_path: Path) -> None:
    """Bodies byte for byte, headers with the broker's account of the death, and the rest of the properties."""
    ids = bury(fleet, 3)
    odd = [b"", b"\xff\xfe\x00", "ä".encode("utf-16"), b"x" * 3_000_000]
    for body, encoding in zip(odd, ["utf-8", None, "utf-16", "binary"], strict=True):
        bury_raw(fleet, body, content_type="text/strange", content_encoding=encoding, message_id=f"m{len(body)}")
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert answer(fleet, "export", str(first), "payments")["exported"] == len(ids) + len(odd)
    assert fleet.count(DEAD) == len(ids) + len(odd)
    before = fleet.take(DEAD)
    assert answer(fleet, "import", str(first)) == {"imported": 7}
    assert answer(fleet, "export", str(second), "payments")["exported"] == len(ids) + len(odd)
    after = fleet.take(DEAD)
    assert [raw(message) for message in after] == [raw(message) for message in before]
    assert [message.headers.get("x-death") for message in after] == [
        message.headers.get("x-death") for message in before
    ]
    for old, new in zip(_lines(first), _lines(second), strict=True):
        for line in (old, new):
            line["headers"].pop("x-delivery-count", None)  # how often it was looked at
        assert old == new
    done = dlq(fleet, "export", str(first), "payments")
    refused(done, "payments: no dead letters.")


def raw(message: Any) -> bytes:
    """Return a body's bytes: this client decodes what it can."""
    return message.body if isinstance(message.body, bytes) else message.body.encode(message.content_encoding)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_event_goes_back_to_the_recorder(fleet: Fleet) -> None:
    """It died while its order could not be found, say; put back, it is on the timeline."""
    order_id = place(fleet)
    event = new_event(EventType.PAYMENT_CAPTURED, order_id, source="test", correlation_id="dlq", data={})
    body = json.dumps(event.to_cloudevent()).encode()
    bury_raw(
        fleet, body, EVENTS_QUEUE, content_type="application/cloudevents+json", content_encoding="utf-8",
        message_id=event.id,
    )  # fmt: skip
    (row,) = answer(fleet, "list", EVENTS_QUEUE)
    assert (row["id"], row["order"], row["task"], row["reason"]) == (event.id, order_id, None, "rejected")
    with fleet.running("recorder"):
        assert answer(fleet, "requeue", "--all", EVENTS_QUEUE, "--canary", "1")["requeued"] == 1
        eventually(lambda: status(fleet, order_id) == "PAID", "it is recorded")
    assert fleet.count(f"{EVENTS_QUEUE}.dlq") == 0


def test_a_full_queue_takes_nothing_and_loses_nothing(fleet: Fleet) -> None:
    """What it refuses stays a dead letter, and the line says so."""
    bury(fleet, 5)
    with fleet.policy("payments", max_length=1):
        done = dlq(fleet, "requeue", "--all", "payments")
    assert done.returncode == 1
    assert "payments: full. What was not moved is still a dead letter; try again later." in done.stderr
    assert "Traceback" not in done.stderr
    alive = fleet.count("payments")
    assert alive >= 1
    eventually(lambda: fleet.count(DEAD) == 5 - alive, "the others stay")


GONE = """
import sys
from shared.deadletters.store import Box
whole = Box.put_back
def gone(box, letter, body=None):
    box._channel.queue_delete("payments")
    return whole(box, letter, body)
Box.put_back = gone
sys.argv[0] = "celery"
from celery.__main__ import main
main()
"""


def test_a_queue_that_is_gone_takes_nothing(fleet: Fleet) -> None:
    """The command declares what is missing; it goes in the very moment of putting back."""
    bury(fleet, 2)
    command = [sys.executable, "-c", GONE, *CELERY[3:], "requeue", "--all", "payments"]
    done = subprocess.run(
        command, env=fleet.stack.environment, cwd=ROOT, check=False, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "payments: no such queue at the broker. What was not moved is still a dead letter" in done.stderr
    assert "Traceback" not in done.stderr
    eventually(lambda: fleet.count(DEAD) == 2, "they stay")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "payment"], "payment: no such queue. There are payments, "),
        (["list", "delivery"], "delivery: no dead letters."),
        (["show", "nobody"], "nobody: no such dead letter. `dlq list QUEUE` shows the ids."),
        (["requeue", "nobody"], "nobody: no such dead letter."),
        (["requeue", "--all", "nowhere"], "nowhere: no such queue."),
        (["requeue", "--all", "delivery"], "delivery: no dead letters."),
        (["requeue", "--all", "payments", "--task", "payments.refund"], "payments: no dead letter is like that."),
        (["edit", "nobody"], "nobody: no such dead letter."),
        (["drop", "nobody", "--reason", "x"], "nobody: no such dead letter."),
        (["export", "letters.jsonl", "nowhere"], "nowhere: no such queue."),
        (["export", "/proc/letters.jsonl", "payments"], "/proc/letters.jsonl: "),
        (["import", "no-such-file"], "no-such-file: cannot be read"),
        (["import", "README.md"], "README.md: line 1 is no dead letter"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(fleet: Fleet, arguments: list[str], words: str) -> None:
    """What is wrong, where, what to do; the message stays."""
    bury(fleet, 1)
    refused(dlq(fleet, *arguments), words)
    assert (fleet.count("payments"), fleet.count(DEAD)) == (0, 1)


def test_what_is_malformed_stays_while_the_others_go(fleet: Fleet) -> None:
    """It would die again; the exit code says that something is left to do."""
    bury(fleet, 2)
    bury_raw(fleet, b"[", headers={"id": "broken", "task": "payments.charge"}, content_type="application/json")
    done = dlq(fleet, "requeue", "--all", "payments", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"requeued": 2, "queues": {"payments": 2}, "malformed": 1}
    assert "1 malformed dead letters stay" in done.stderr
    assert (fleet.count("payments"), fleet.count(DEAD)) == (2, 1)


def test_a_broker_that_is_away_is_named(fleet: Fleet) -> None:
    """Its variable, and that nothing is lost."""
    away = f"amqp://guest:guest@127.0.0.1:{free_port()}//"
    refused(dlq(fleet, "list", BROKER_URL=away), "BROKER_URL: ")


def test_a_database_that_is_away_is_named(fleet: Fleet) -> None:
    """Its variable; the letters stay."""
    (task_id,) = bury(fleet, 1)
    url = f"postgresql+psycopg2://nobody:x@127.0.0.1:{free_port()}/orders"
    for arguments in (["list", "payments"], ["requeue", task_id], ["drop", task_id, "--reason", "x"]):
        refused(dlq(fleet, *arguments, ORDERS_DATABASE_URL=url), "ORDERS_DATABASE_URL: ")
    assert (fleet.count("payments"), fleet.count(DEAD)) == (0, 1)


def test_a_rate_is_kept_and_a_plan_changes_nothing(fleet: Fleet) -> None:
    """Five at five a second take four pauses of 0.2 s; a dry run only lists."""
    ids = bury(fleet, 5)
    assert [row["id"] for row in answer(fleet, "requeue", "--all", "payments", "--dry-run")] == ids
    assert fleet.count(DEAD) == 5
    started = time.monotonic()
    assert answer(fleet, "requeue", "--all", "payments", "--rate", "5")["requeued"] == 5
    assert time.monotonic() - started >= 0.8
    assert ids_in(fleet, "payments") == ids


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_for_a_terminal_only(fleet: Fleet, *, terminal: bool) -> None:
    """A log file gets no control characters."""
    bury(fleet, 3)
    ours, theirs = pty.openpty() if terminal else os.pipe()
    command = [*CELERY, "requeue", "--all", "payments", "--rate", "20"]
    environment = {**fleet.stack.environment, "TERM": "xterm", "COLUMNS": "100"}
    try:
        subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs, check=True)
        os.write(theirs, b"\nEND")
        said = b""
        while b"END" not in said:
            said += os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (b"putting back" in said) is terminal
    assert (b"\x1b" in said) is terminal
