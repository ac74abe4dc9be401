"""The dead-letter desk on the embedded broker, in this process: every command, and what it leaves behind."""

import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from shared.contracts import saga as table
from shared.contracts.events import EventType
from shared.contracts.queues import EVENTS_QUEUE, Queue
from shared.deadletters import moves, remote
from shared.deadletters.store import Box, bury
from shared.settings import get_settings
from tests.eager.conftest import Saga
from tests.support import DeskCommands, event, new_waybill, wait_until
from workers.orders.desk import dlq

Serve = Callable[[], AbstractContextManager[None]]
CONTENT = {"content_type": "application/json", "content_encoding": "utf-8"}
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class Desk(DeskCommands):
    """The command, and what it is run on."""

    def __init__(self, saga: Saga) -> None:
        self.saga = saga

    def run(self, *arguments: str, **environment: str) -> Result:
        """Run it as Celery's command line does."""
        return CliRunner(env=environment).invoke(dlq, arguments, obj=SimpleNamespace(app=self.saga.app))

    def bury(self, queue: str = "payments", task_id: str = "", body: Any = None, **headers: Any) -> str:
        """Put a letter among the dead; return its id."""
        task_id = task_id or str(uuid.uuid4())
        body = [[new_waybill().to_dict()], {}, EMBED] if body is None else body
        told = {"id": task_id, "task": "payments.charge", "retries": 8, **headers}
        bury(self.saga.app, queue, json.dumps(body).encode(), told, CONTENT)
        return task_id

    def ids(self, queue: str = "payments") -> list[str]:
        """Return the ids of a queue's dead letters, oldest first."""
        return [row["id"] for row in self.tell("list") if row["queue"] == queue]

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in a queue."""
        with self.saga.app.connection_for_read() as connection:
            return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


@pytest.fixture
def desk(saga: Saga) -> Desk:
    """The desk of a fleet whose messages travel."""
    saga.app.conf.task_always_eager = False
    return Desk(saga)


@pytest.fixture
def parked(desk: Desk, worker: Serve, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three orders that the provider let down; it works again."""
    desk.saga.use(step_max_retries=0)
    waybills = [desk.saga.store() for _ in range(3)]
    with worker(), monkeypatch.context() as patch:
        patch.setattr(desk.saga.gateway, "charge", lambda *_: 1 / 0)
        for waybill in waybills:
            table.forward(waybill).apply_async()
        wait_until(lambda: desk.waiting("payments.dlq") == len(waybills))
    desk.saga.drain()
    return [waybill.order_id for waybill in waybills]


def test_an_outage_ends_with_every_order_completed(
    desk: Desk, parked: list[str], worker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen, put back after a canary, completed; one charge each, and the timeline says who did it."""
    rows = desk.tell("list", "payments")
    assert {row["order"] for row in rows} == set(parked)
    assert {row["error"] for row in rows} == {"ZeroDivisionError: division by zero"}
    assert {row["reason"] for row in rows} == {"rejected"}
    with worker():
        monkeypatch.setattr(Box, "rest", lambda *_: desk.saga.drain())  # the recorder, while the canary is watched
        done = desk.run("requeue", "--all", "payments", "--canary", "1", "--json")
        said = done.stdout.splitlines()[-1]  # below what the workers log into the same output
        assert json.loads(said) == {"requeued": 3, "queues": {"payments": 3}, "malformed": 0}
        for order_id in parked:
            wait_until(lambda order_id=order_id: desk.saga.told(order_id))
    desk.saga.drain()
    assert desk.saga.money == (3, 0)
    for order_id in parked:
        assert desk.saga.status(order_id) == "COMPLETED"
        (audit,) = [entry for entry in desk.saga.timeline(order_id) if entry["type"] == EventType.DEADLETTER_REQUEUED]
        assert audit["source"] == "dlq"
        assert "@" in audit["data"]["by"]


def test_a_canary_that_dies_keeps_the_rest(
    desk: Desk, parked: list[str], worker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first is tried."""
    ids = desk.ids()
    monkeypatch.setattr(desk.saga.gateway, "charge", lambda *_: 1 / 0)
    with worker():
        line = desk.refuse("requeue", "--all", "payments", "--canary", "1")
    assert line == f"Error: {ids[0]}: the canary died again. The rest was not touched. 1 put back, 2 not."
    assert sorted(desk.ids()) == sorted(ids)


def test_a_canary_without_an_outcome_keeps_the_rest(desk: Desk, parked: list[str]) -> None:
    """Nobody works: the command gives up in time."""
    ids = desk.ids()
    line = desk.refuse("requeue", "--all", "payments", "--canary", "2", "--canary-timeout", "1")
    assert line.startswith(f"Error: {ids[0]}, {ids[1]}: no outcome after 1 s. The rest was not touched.")
    assert desk.ids() == ids[2:]


def test_a_canary_needs_an_order_to_watch(desk: Desk) -> None:
    """A letter of no known order has no timeline that would tell."""
    task_id = desk.bury()
    assert "--canary: none of them is of a known order" in desk.refuse("requeue", "--all", "payments", "--canary", "1")
    assert desk.ids() == [task_id]


def test_the_summary_groups_by_task_and_error(desk: Desk, parked: list[str]) -> None:
    """Every queue with its count, then what died of what, most frequent first."""
    desk.bury("delivery", task="delivery.assign")
    lines = [line.split() for line in desk.run("list").stdout.splitlines()]
    assert ["payments", "3", "0s"] in [[*line[:2], "0s"] for line in lines]
    assert ["orders.events", "0", "-"] in lines
    assert ["payments", "payments.charge", "3", "ZeroDivisionError:", "division", "by", "zero"] in lines
    assert ["delivery", "delivery.assign", "1", "rejected"] in lines


def test_a_letter_is_shown_with_all_that_is_known(desk: Desk, parked: list[str]) -> None:
    """Error, traceback, what is left of the chain, the order's timeline; the body only when asked, its token masked."""
    (task_id, *_) = desk.ids()
    (shown,) = desk.tell("show", task_id)
    assert "gateway.charge" in shown["traceback"]
    assert shown["rest_of_chain"] == ["delivery.assign", "notifications.send"]
    assert [entry["type"] for entry in shown["timeline"]] == ["order.placed", "step.parked"]
    assert "body" not in shown
    (shown,) = desk.tell("show", task_id, "--body")
    assert (shown["body"][0][0]["currency"], shown["body"][0][0]["payment_method"]) == ("EUR", "***")
    text = desk.run("show", task_id, "--body").stdout
    assert "delivery.assign > notifications.send" in text
    assert "tok_ok" not in text


@pytest.mark.parametrize(
    "filters",
    [
        ("--task", "delivery.assign"),
        ("--error", "no such error"),
        ("--order", str(uuid.uuid4())),
        ("--since", "2999-01-01"),
        ("--before", "3d"),
    ],
)
def test_a_filter_that_matches_nothing_says_so(desk: Desk, parked: list[str], filters: tuple[str, str]) -> None:
    """Nothing is put back, and that is an error."""
    assert "no dead letter is like that" in desk.refuse("requeue", "--all", *filters)
    assert len(desk.ids()) == 3


def test_filters_choose_what_goes_back(desk: Desk, parked: list[str]) -> None:
    """All of them must fit; the rest stays."""
    other = desk.bury()
    chosen = ("--task", "payments.charge", "--error", "division", "--order", parked[0], "--since", "1h")
    (plan,) = desk.tell("requeue", "--all", "payments", *chosen, "--dry-run")
    assert plan["order"] == parked[0]
    assert len(desk.ids()) == 4
    assert desk.tell("requeue", "--all", "payments", *chosen)["requeued"] == 1
    assert plan["id"] not in desk.ids()
    assert other in desk.ids()


def test_it_writes_no_faster_than_its_rate(desk: Desk) -> None:
    """Four at twenty a second: three pauses."""
    ids = [desk.bury() for _ in range(4)]
    started = time.monotonic()
    assert desk.tell("requeue", *ids, "--rate", "20")["requeued"] == 4
    assert time.monotonic() - started >= 0.15


def test_interrupted_the_letter_in_hand_is_moved_whole(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between publishing and acknowledging: exit code 130, nothing is there twice, the count is true."""
    ids, take_out = [desk.bury() for _ in range(3)], Box.take_out

    def interrupted(box: Box, letter: Any) -> None:
        os.kill(os.getpid(), 2)
        take_out(box, letter)

    monkeypatch.setattr(Box, "take_out", interrupted)
    done = desk.run("requeue", "--all", "payments")
    assert (done.exit_code, done.stderr) == (130, "Interrupted: 1 put back, 2 still dead letters.\n")
    assert (desk.waiting("payments"), desk.ids()) == (1, ids[1:])


def test_interrupted_an_import_says_what_is_only_in_the_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The letter in hand is buried and counted; the file is as it was, so it may be read again."""
    ids, whole = [desk.bury() for _ in range(3)], moves.bury
    file = desk.tell("drop", *ids, "--reason", "moving")["export"]

    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), 2)
        whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(moves, "bury", interrupted)
        done = desk.run("import", file)
    assert (done.exit_code, done.stderr) == (130, f"Interrupted: 1 are dead letters again, 2 only in {file}.\n")
    assert desk.ids() == ids[:1]


def test_interrupted_a_drop_says_what_is_out_and_where_it_is_kept(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The letter in hand is taken out and counted; the file has all of them, the others are dead letters too."""
    ids, take_out = [desk.bury() for _ in range(3)], Box.take_out

    def interrupted(box: Box, letter: Any) -> None:
        os.kill(os.getpid(), 2)
        take_out(box, letter)

    with monkeypatch.context() as patch:
        patch.setattr(Box, "take_out", interrupted)
        done = desk.run("drop", *ids, "--reason", "litter")
    (file,) = (get_settings().var_dir / "dropped").iterdir()
    assert done.exit_code == 130
    assert done.stderr == f"Interrupted: 1 dropped, 2 still dead letters; {file} has all of them.\n"
    assert len(file.read_text().splitlines()) == 3
    assert desk.ids() == ids[1:]


def test_what_somebody_else_moved_meanwhile_is_an_error(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is moved all the same."""
    gone, left = desk.bury(), desk.bury()
    monkeypatch.setattr(moves, "_STRAGGLING", 0.2)
    known = moves.known_orders

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(moves, "known_orders", known)
        assert desk.tell("requeue", gone)["requeued"] == 1
        return known(*arguments)

    monkeypatch.setattr(moves, "known_orders", meanwhile)
    line = desk.refuse("requeue", gone, left)
    assert line == "Error: 1 of 2 are dead letters no more: somebody else moved them meanwhile. 1 put back, 1 not."


def editor(tmp_path: Path, python: str) -> str:
    """Return an ``$EDITOR`` that runs Python on the ``waybill`` in the file."""
    script = tmp_path / "edit.py"
    lines = [
        "import json, os, pathlib, sys",
        "file = pathlib.Path(sys.argv[1])",
        "waybill = json.loads(file.read_text())",
    ]
    lines += [python, "file.write_text(json.dumps(waybill))", "os.utime(file, (1, 1))"]
    script.write_text("\n".join(lines))
    return f"{sys.executable} {script}"


def test_an_edited_waybill_goes_back(desk: Desk, parked: list[str], tmp_path: Path) -> None:
    """Changed as the editor left it, with its chain, and on the timeline."""
    (task_id, *_) = desk.ids()
    change = editor(tmp_path, "waybill['address']['city'] = 'Bonn'")
    assert desk.tell("edit", task_id, EDITOR=change) == {"edited": task_id, "count": 1}
    (message,) = desk.saga.take("payments")
    body, _, embed = message.payload
    assert (message.headers["id"], body[0]["address"]["city"], len(embed["chain"])) == (task_id, "Bonn", 2)
    desk.saga.drain()
    assert EventType.DEADLETTER_EDITED in desk.saga.events(body[0]["order_id"])


def test_a_letter_whose_waybill_broke_is_mended(desk: Desk, tmp_path: Path) -> None:
    """It is malformed until then."""
    waybill = new_waybill()
    broken = desk.bury(body=[[{**waybill.to_dict(), "amount_cents": "many"}], {}, EMBED])
    assert "malformed: waybill: wrong or missing: amount_cents; it would die again" in desk.refuse("requeue", broken)
    desk.tell("edit", broken, EDITOR=editor(tmp_path, "waybill['amount_cents'] = 5"))
    assert (desk.waiting("payments"), desk.ids()) == (1, [])


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"task": "os.system"}, None),
        ({"retries": -1}, None),
        ({}, []),
        ({}, [[], {}, EMBED]),
        ({}, [["text"], {}, EMBED]),
    ],
)
def test_what_no_waybill_would_mend_is_not_edited(
    desk: Desk, headers: dict[str, Any], body: Any, tmp_path: Path
) -> None:
    """It would die again; the line says what is left to do."""
    task_id = desk.bury(body=body, **headers)
    assert "Use `dlq export` or `dlq drop`" in desk.refuse("edit", task_id, EDITOR="false")
    assert desk.ids() == [task_id]


def test_letters_with_one_id_are_handled_together(desk: Desk, tmp_path: Path) -> None:
    """Shown, edited and dropped: all of them."""
    waybill = new_waybill()
    for _ in range(2):
        desk.bury(task_id="twice", body=[[waybill.to_dict()], {}, EMBED])
    assert len(desk.tell("show", "twice")) == 2
    desk.tell("edit", "twice", EDITOR=editor(tmp_path, "waybill['customer_id'] = 'cus_2'"))
    assert (desk.waiting("payments"), desk.ids()) == (2, [])
    for _ in range(2):
        desk.bury(task_id="twice")
    assert desk.tell("drop", "twice", "--reason", "litter")["dropped"] == 2


def test_a_dropped_letter_undoes_its_order(desk: Desk, parked: list[str], worker: Serve) -> None:
    """Kept in a file of its owner's; the order is cancelled, the timeline says who and why."""
    (row, *_) = desk.tell("list", "payments")
    told = desk.tell("drop", row["id"], "--reason", "customer called")
    with worker():
        wait_until(lambda: desk.saga.told(row["order"]) == ["cancelled"])
    desk.saga.drain()
    assert (told["dropped"], told["cancelled"]) == (1, [row["order"]])
    assert Path(told["export"]).stat().st_mode & 0o777 == 0o600
    assert desk.saga.status(row["order"]) == "CANCELLED"
    (audit,) = [entry for entry in desk.saga.timeline(row["order"]) if entry["type"] == EventType.DEADLETTER_DROPPED]
    assert audit["data"]["reason"] == "customer called"
    assert desk.tell("import", told["export"]) == {"imported": 1}
    assert row["id"] in desk.ids()


def test_dropping_litter_undoes_nothing(desk: Desk) -> None:
    """A notification, an event, or a step of an order that is done: the order stays as it is."""
    saga = desk.saga
    saga.app.conf.task_always_eager = True
    order_id = saga.place()
    saga.app.conf.task_always_eager = False
    body = [[saga.store().to_dict() | {"order_id": order_id}], {}, EMBED]
    desk.bury("payments", "late", body)
    desk.bury("notifications", "unsent", body, task="notifications.send")
    captured = event(order_id, EventType.PAYMENT_CAPTURED).to_cloudevent()
    bury(saga.app, EVENTS_QUEUE, json.dumps(captured).encode(), {}, {**CONTENT, "message_id": "stated"})
    assert desk.tell("drop", "late", "unsent", "stated", "--reason", "litter")["cancelled"] == []
    saga.drain()
    assert saga.status(order_id) == "COMPLETED"
    assert saga.events(order_id).count(EventType.DEADLETTER_DROPPED) == 3


def test_what_is_exported_comes_back_byte_for_byte(desk: Desk, tmp_path: Path) -> None:
    """From every queue, with headers and properties; a file that is there is not overwritten."""
    ids = [desk.bury(queue) for queue in Queue]
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert desk.tell("export", str(first))["exported"] == 4
    assert "File exists" in desk.refuse("export", str(first))
    assert desk.tell("drop", *ids, "--reason", "moving")["dropped"] == 4
    assert desk.tell("import", str(first)) == {"imported": 4}
    desk.tell("export", str(second))
    assert second.read_text() == first.read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no dead letters in it"),
        ("{}", "line 1 is no dead letter (queue, body, headers, properties)"),
        ("[" * 100_000, "line 1 is no dead letter"),
        ('{"queue": "nowhere", "body": "", "headers": {}, "properties": {}}', "line 1 is no dead letter (queue)"),
        ('{"queue": "payments", "body": "%", "headers": {}, "properties": {}}', "line 1 is no dead letter"),
    ],
)
def test_a_file_that_is_no_export_is_refused(desk: Desk, tmp_path: Path, text: str, words: str) -> None:
    """Whole: not even its good lines are read."""
    file = tmp_path / "letters.jsonl"
    file.write_text(text)
    assert words in desk.refuse("import", str(file))
    assert desk.tell("list") == []


@pytest.mark.parametrize(
    "headers",
    [
        {"x-death": "junk"},
        {"x-death": [1]},
        {"x-death": [{"time": "yesterday", "reason": 5}]},
        {"retries": "many"},
        {"argsrepr": 5, "id": None},
        {"task": ["x"], "compression": {"a": 1}},
        {"id": "\u001b[2J", "task": "[/bold]\ud800"},
    ],
)
def test_a_strange_letter_does_not_hide_the_others(desk: Desk, headers: dict[str, Any]) -> None:
    """Anybody may have sent it; it is listed, shown and dropped like any other, and nothing of it runs."""
    good = desk.bury()
    desk.bury(**headers)
    assert len(desk.ids()) == 2
    (strange,) = [each for each in desk.ids() if each != good]
    table_, shown = desk.run("list", "payments"), desk.run("show", strange, "--body")
    assert (table_.exit_code, shown.exit_code) == (0, 0)
    assert "\x1b" not in table_.stdout + shown.stdout
    assert desk.tell("drop", strange, "--reason", "strange")["dropped"] == 1
    assert desk.ids() == [good]


@pytest.mark.parametrize("command", ["list", "show", "requeue", "edit", "drop", "export", "import"])
def test_every_command_shows_an_example(desk: Desk, command: str) -> None:
    """`--help` ends an operator's guessing."""
    done = desk.run(command, "--help")
    assert done.exit_code == 0
    assert f"Example: {'EDITOR=vi ' if command == 'edit' else ''}celery -A workers dlq {command}" in done.stdout
    assert "--json" in done.stdout


@pytest.mark.parametrize("rate", ["20", "20/s"])
def test_a_rate_may_be_written_with_its_unit(desk: Desk, rate: str) -> None:
    """As the help shows it, and as it is said."""
    assert desk.tell("requeue", desk.bury(), "--rate", rate)["requeued"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["requeue"], "say which: ID..., or --all [QUEUE]"),
        (["requeue", "--all", "payments", "orders"], "--all takes at most one QUEUE"),
        (["requeue", "some-id", "--task", "x"], "go with --all"),
        (["list", "--since", "yesterday"], "yesterday: not a time; write 2026-05-01T03:00, or 90s, 15m, 2h, 3d ago."),
        (["requeue", "--all", "--rate", "0"], "0: not a rate; write 20 or 20/s, more than 0."),
        (["requeue", "--all", "--rate", "nan"], "nan: not a rate"),
        (["requeue", "--all", "--rate", "20/min"], "20/min: not a rate"),
        (["drop", "some-id"], "--reason"),
    ],
)
def test_a_command_that_says_too_little_does_nothing(desk: Desk, arguments: list[str], words: str) -> None:
    """It is told what is missing."""
    desk.bury()
    done = desk.run(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(desk.ids()) == 1


def test_an_embedded_stack_answers_from_outside(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its letters live in its process: commands go there, the editor and its files stay with the operator."""
    task_id = desk.bury()
    monkeypatch.chdir(tmp_path)
    path = remote.address_file(replace(get_settings(), var_dir=tmp_path))
    with remote.serve(path, dlq, desk.saga.app):
        assert remote.forward(path, ["list", "payments", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["id"] == task_id
        assert remote.forward(path, ["export", "letters.jsonl"]) == 0
        assert (tmp_path / "letters.jsonl").exists()
        assert remote.forward(path, ["show", "nobody"]) == 1
        assert "nobody: no such dead letter" in capsys.readouterr().err
        assert remote.forward(path, ["edit", "--help"]) == 0
        monkeypatch.setenv("EDITOR", editor(tmp_path, "waybill['customer_id'] = 'cus_2'"))
        assert remote.forward(path, ["edit", task_id]) == 0
    (message,) = desk.saga.take("payments")
    assert message.payload[0][0]["customer_id"] == "cus_2"
    with pytest.raises(click.ClickException, match="no embedded stack answers there"):
        remote.forward(path, ["list"])
