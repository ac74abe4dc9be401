"""The dead-letter desk on RabbitMQ, nobody consuming: what it shows, moves and refuses."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.queues import TaskName
from shared.deadletters import store
from shared.deadletters.store import Box
from stacks.local import ROOT
from stacks.processes import free_port
from tests.integration.conftest import make_waybill
from tests.integration.desk import DEAD, Desk, editor, lines
from tests.integration.nodes import Fleet, eventually

MANY = 2_000


def test_a_canary_without_an_outcome_keeps_the_rest_where_it_is(fleet: Fleet, desk: Desk) -> None:
    """Nobody works: after its time the command says so."""
    for _ in range(2):
        desk.place()
    desk.reject(2)
    line = desk.refuse("requeue", "--all", "payments", "--canary", "1", "--canary-timeout", "1")
    assert "no outcome after 1 s. The rest was not touched. 1 put back, 1 not." in line
    assert (fleet.count("payments"), fleet.count(DEAD)) == (1, 1)


def test_thousands_are_listed_in_pages_and_none_is_taken(
    fleet: Fleet, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every one, oldest first, and afterwards the same again; whoever lists at the same time sees all as well."""
    monkeypatch.setattr(store, "_PAGE", MANY // 3)
    ids, waybill = [str(uuid.uuid4()) for _ in range(MANY)], make_waybill()
    desk.bury_copies(ids, lambda _: waybill)
    with desk.start("list", "payments", "--json", stdout=subprocess.PIPE) as other:
        assert [row["id"] for row in desk.tell("list", "payments")] == ids
        listed, _ = other.communicate(timeout=60)
    assert [row["id"] for row in json.loads(listed)] == ids
    assert fleet.count(DEAD) == len(ids)
    table = desk.run("list", "payments").stdout.splitlines()
    assert [row.split()[0] for row in table[2:] if row] == ids
    assert fleet.count(DEAD) == len(ids)


def test_an_id_means_every_letter_that_has_it(fleet: Fleet, desk: Desk) -> None:
    """A task may die twice; both go back, or neither."""
    (task_id,) = desk.bury(1)
    (copy,) = fleet.take(DEAD)
    desk.publish(copy, DEAD, DEAD)
    assert [row["id"] for row in desk.tell("list", "payments")] == [task_id, task_id]
    assert len(desk.tell("show", task_id)) == 2
    assert desk.tell("requeue", task_id)["requeued"] == 2
    assert (fleet.count("payments"), fleet.count(DEAD)) == (2, 0)


def test_a_poisoned_message_is_shown_and_not_run(fleet: Fleet, desk: Desk, tmp_path: Path) -> None:
    """A pickle would run whatever it says on the operator's machine; an escape sequence would write on the screen."""

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "went off"),)

    bomb = pickle.dumps([[Bomb()], {}, {}])
    headers = {"id": "bomb\x1b[2J", "task": "[/red] payments.charge", "x-death": "junk", "argsrepr": "('tok_secret',)"}
    desk.bury_raw(bomb, headers=headers, content_type="application/x-python-serialize", content_encoding="binary")
    assert "\x1b" not in desk.run("list", "payments").stdout
    (row,) = desk.tell("list", "payments")
    assert row["reason"].startswith("malformed: ")
    shown = desk.run("show", row["id"], "--body").stdout
    assert "bomb" in shown
    assert "secret" not in shown
    assert "\x1b" not in shown
    assert "it would die again. Use `dlq edit` or `dlq drop`." in desk.refuse("requeue", row["id"])
    file = tmp_path / "bomb.jsonl"
    assert desk.tell("drop", row["id"], "--reason", "poison", "--export", str(file))["dropped"] == 1
    assert desk.tell("import", str(file))["imported"] == 1
    (back,) = fleet.take(DEAD)
    assert back.body == bomb
    assert not (tmp_path / "went off").exists()


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("file.write_text('{'); os = __import__('os'); os.utime(file, (1, 1)); sys.exit()", "Nothing was changed"),
        ("waybill['amount_cents'] = 'many'", "wrong or missing: amount_cents. Nothing was changed"),
        (f"waybill['order_id'] = '{uuid.UUID(int=1)}'", "order_id is another order's. Nothing was changed"),
        ("", "not saved, so nothing was changed"),
        ("sys.exit(3)", "Editing failed"),
    ],
)
def test_a_bad_edit_changes_nothing(fleet: Fleet, desk: Desk, tmp_path: Path, python: str, words: str) -> None:
    """One line says what is wrong; the letter stays as it is."""
    (task_id,) = desk.bury(1)
    assert words in desk.refuse("edit", task_id, EDITOR=editor(tmp_path, python))
    assert (fleet.count("payments"), fleet.count(DEAD)) == (0, 1)


def test_what_is_exported_comes_back_as_it_was(fleet: Fleet, desk: Desk, tmp_path: Path) -> None:
    """Bodies byte for byte, headers with the broker's account of the death, and the rest of the properties."""
    ids = desk.bury(3)
    odd = [b"", b"\xff\xfe\x00", "ä".encode("utf-16"), b"x" * 3_000_000]
    for body, encoding in zip(odd, ["utf-8", None, "utf-16", "binary"], strict=True):
        desk.bury_raw(body, content_type="text/strange", content_encoding=encoding, message_id=f"m{len(body)}")
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert desk.tell("export", str(first), "payments")["exported"] == len(ids) + len(odd)
    assert fleet.count(DEAD) == len(ids) + len(odd)
    before = fleet.take(DEAD)
    assert desk.tell("import", str(first)) == {"imported": 7}
    assert desk.tell("export", str(second), "payments")["exported"] == len(ids) + len(odd)
    after = fleet.take(DEAD)
    assert [_raw(message) for message in after] == [_raw(message) for message in before]
    assert [message.headers.get("x-death") for message in after] == [
        message.headers.get("x-death") for message in before
    ]
    for old, new in zip(lines(first), lines(second), strict=True):
        for line in (old, new):
            line["headers"].pop("x-delivery-count", None)  # how often it was looked at
        assert old == new
    assert "payments: no dead letters." in desk.refuse("export", str(first), "payments")


def _raw(message: Any) -> bytes:
    """Return a body's bytes: this client decodes what it can."""
    return message.body if isinstance(message.body, bytes) else message.body.encode(message.content_encoding)


def test_a_full_queue_takes_nothing_and_loses_nothing(fleet: Fleet, desk: Desk) -> None:
    """What it refuses stays a dead letter, and the line says so."""
    ids = desk.bury(5)
    with fleet.policy("payments", max_length=1):
        line = desk.refuse("requeue", "--all", "payments")
    alive, dead = desk.ids_in("payments"), desk.ids_in(DEAD)
    assert "payments: full. What was not moved is still a dead letter; try again later." in line
    assert f"{len(alive)} put back, {len(dead)} not." in line
    assert dead
    assert alive + dead == ids


def test_a_full_dead_letter_queue_refuses_an_import(fleet: Fleet, desk: Desk, tmp_path: Path) -> None:
    """The line says how many are back; the file still has all of them."""
    for number in range(5):
        desk.bury_raw(b"[", "notifications", message_id=f"m{number}", content_type="application/json")
    file, dead = tmp_path / "letters.jsonl", "notifications.dlq"
    desk.tell("export", str(file), "notifications")
    fleet.take(dead)
    with fleet.policy(dead, max_length=1):
        line = desk.refuse("import", str(file))
    count = fleet.count(dead)
    assert f"{dead}: full." in line
    assert f"{count} are dead letters again, {5 - count} not." in line
    assert len(lines(file)) == 5


def test_a_queue_that_is_gone_takes_nothing(fleet: Fleet, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command declares what is missing; it goes in the very moment of putting back."""
    ids, whole = desk.bury(2), Box.put_back

    def gone(*arguments: Any) -> None:
        fleet.delete_queue("payments")
        whole(*arguments)

    monkeypatch.setattr(Box, "put_back", gone)
    line = desk.refuse("requeue", "--all", "payments")
    assert "payments: no such queue at the broker. What was not moved is still a dead letter" in line
    assert desk.ids_in(DEAD) == ids


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
        (["import", str(ROOT / "README.md")], "README.md: line 1 is no dead letter"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(fleet: Fleet, desk: Desk, arguments: list[str], words: str) -> None:
    """What is wrong, where, what to do; the message stays."""
    desk.bury(1)
    assert words in desk.refuse(*arguments)
    assert (fleet.count("payments"), fleet.count(DEAD)) == (0, 1)


def test_what_is_malformed_stays_while_the_others_go(fleet: Fleet, desk: Desk) -> None:
    """It would die again; the exit code says that something is left to do."""
    desk.bury(2)
    desk.bury_raw(b"[", headers={"id": "broken", "task": str(TaskName.CHARGE)}, content_type="application/json")
    done = desk.run("requeue", "--all", "payments", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {"requeued": 2, "queues": {"payments": 2}, "malformed": 1}
    assert "1 malformed dead letters stay" in done.stderr
    assert (fleet.count("payments"), fleet.count(DEAD)) == (2, 1)


def test_a_broker_that_is_away_is_named_by_the_command_itself(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variable, in one line of the real command."""
    monkeypatch.setitem(desk.fleet.stack.environment, "BROKER_URL", f"amqp://guest:guest@127.0.0.1:{free_port()}//")
    process = desk.start("list", stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith("Error: BROKER_URL: ")
    assert len(said.splitlines()) == 1


def test_a_database_that_is_away_is_named(fleet: Fleet, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variable; the letters stay."""
    (task_id,) = desk.bury(1)
    url = f"postgresql+psycopg2://nobody:x@127.0.0.1:{free_port()}/orders"
    monkeypatch.setitem(fleet.extra, "ORDERS_DATABASE_URL", url)
    for arguments in (["list", "payments"], ["requeue", task_id], ["drop", task_id, "--reason", "x"]):
        assert "ORDERS_DATABASE_URL: " in desk.refuse(*arguments)
    assert (fleet.count("payments"), fleet.count(DEAD)) == (0, 1)


def test_a_rate_is_kept_and_a_plan_changes_nothing(fleet: Fleet, desk: Desk) -> None:
    """Five at five a second take four pauses of 0.2 s; a dry run only lists."""
    ids = desk.bury(5)
    assert [row["id"] for row in desk.tell("requeue", "--all", "payments", "--dry-run")] == ids
    eventually(lambda: fleet.count(DEAD) == 5, "nothing was moved")
    started = time.monotonic()
    assert desk.tell("requeue", "--all", "payments", "--rate", "5/s")["requeued"] == 5
    assert time.monotonic() - started >= 0.8
    assert desk.ids_in("payments") == ids
