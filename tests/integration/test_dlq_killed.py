"""The dead-letter desk is killed, interrupted and used by two at once: no letter is ever lost."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.deadletters import store
from tests.integration.conftest import make_waybill
from tests.integration.desk import CELERY, DEAD, Desk, lines
from tests.integration.nodes import Fleet, eventually

HOLDING = 20  # letters of a run that is to be disturbed
MANY = 200  # letters of a run that is killed at random
#: The real command, killed before or after the second call of one of its functions.
KILL = """
import os, pkgutil, signal, sys
owner, name, when = sys.argv.pop(1).split()
owner = pkgutil.resolve_name(owner)
calls, whole = [], getattr(owner, name)
def killed(*arguments, **options):
    calls.append(1)
    if len(calls) == 2 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = whole(*arguments, **options)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, name, killed)
sys.argv[0] = "celery"
from celery.__main__ import main
main()
"""
BOX = "shared.deadletters.store:Box"


def killed_at(desk: Desk, point: str, *arguments: str) -> None:
    """Run the command until it is killed at ``point``."""
    process = desk.start(*arguments, command=[sys.executable, "-c", KILL, point, *CELERY[3:]])
    assert process.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("point", ["put_back before", "put_back after", "take_out before", "take_out after"])
def test_killed_at_any_point_a_requeue_loses_no_letter(fleet: Fleet, desk: Desk, point: str) -> None:
    """Each is in its queue or among the dead letters, at most the one in hand in both; the next run ends the work."""
    ids = desk.bury(4)
    killed_at(desk, f"{BOX} {point}", "requeue", "--all", "payments")
    alive, dead = desk.ids_in("payments"), desk.ids_in(DEAD)
    assert sorted({*alive, *dead}) == sorted(ids)
    assert len(alive) + len(dead) == (5 if point in {"put_back after", "take_out before"} else 4)
    assert [each for each in ids if each in set(dead)] == dead, "in the order in which they died"
    assert desk.tell("requeue", "--all", "payments")["requeued"] == len(dead)
    assert set(desk.ids_in("payments")) == set(ids)
    assert fleet.count(DEAD) == 0


@pytest.mark.parametrize(
    ("point", "out"),
    [
        ("shared.deadletters.archive _as_line after", 0),
        ("workers.orders.desk:Records cancel after", 1),
        (f"{BOX} take_out before", 1),
        (f"{BOX} take_out after", 2),
    ],
)
def test_killed_at_any_point_a_drop_leaves_no_order_hanging(desk: Desk, tmp_path: Path, point: str, out: int) -> None:
    """What is out is in the file and its order is being undone; the next run ends the work."""
    orders = {str(uuid.uuid4()): desk.store() for _ in range(4)}
    ids, file = list(orders), tmp_path / "dropped.jsonl"
    desk.bury_copies(ids, orders.__getitem__)
    killed_at(desk, point, "drop", *ids, "--reason", "test", "--export", str(file))
    assert desk.ids_in(DEAD) == ids[out:]
    if out:
        assert [line["id"] for line in lines(file)] == ids
    assert {desk.status(orders[each].order_id) for each in ids[:out]} <= {"CANCELLING"}
    assert desk.tell("drop", *ids[out:], "--reason", "test")["dropped"] == 4 - out
    assert {desk.status(waybill.order_id) for waybill in orders.values()} == {"CANCELLING"}


@contextmanager
def at_work(
    desk: Desk, has_begun: Callable[[], bool], *arguments: str, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run the real command; the block begins when it is at work, or has ended, and ends with its death."""
    with desk.start(*arguments, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}) as process:
        try:
            eventually(lambda: has_begun() or process.poll() is not None, "it is at work")
            yield process
        finally:
            process.kill()


def killed_at_random(desk: Desk, pick: random.Random, has_begun: Callable[[], bool], *arguments: str) -> None:
    """Run the real command and kill it somewhere between its beginning and its end."""
    with at_work(desk, has_begun, *arguments):
        time.sleep(pick.uniform(0, 0.3))  # the moment is the point


def test_a_requeue_that_is_killed_again_and_again_loses_no_letter(fleet: Fleet, desk: Desk) -> None:
    """Each run puts some back, at most the one in hand twice; the last one finds the rest."""
    pick, ids, waybill = random.Random(20260101), [str(uuid.uuid4()) for _ in range(MANY)], make_waybill()
    desk.bury_copies(ids, lambda _: waybill)
    for run in range(1, 5):
        before = fleet.count("payments")
        killed_at_random(
            desk, pick, lambda before=before: fleet.count("payments") > before, "requeue", "--all", "--rate", "150/s"
        )
        alive, dead = desk.ids_in("payments"), desk.ids_in(DEAD)
        assert {*alive, *dead} == set(ids)
        assert len(alive) + len(dead) <= len(ids) + run, "one in hand for each run"
        assert dead, "it was killed before its end"
    desk.tell("requeue", "--all")
    assert set(desk.ids_in("payments")) == set(ids)
    assert fleet.count(DEAD) == 0


def test_a_drop_that_is_killed_again_and_again_loses_no_letter(desk: Desk, tmp_path: Path) -> None:
    """Whatever is out is in a file of its run, and its order is being undone."""
    pick, orders = random.Random(20260102), {str(uuid.uuid4()): desk.store() for _ in range(60)}
    desk.bury_copies(orders, orders.__getitem__)
    kept: set[str] = set()
    for run in range(2):
        file, held = tmp_path / f"{run}.jsonl", desk.ids_in(DEAD)
        killed_at_random(desk, pick, file.exists, "drop", *held, "--reason", "test", "--export", str(file))
        dead = desk.ids_in(DEAD)
        if len(dead) < len(held):
            kept |= {line["id"] for line in lines(file)}
        assert set(orders) - set(dead) <= kept
        assert {desk.status(orders[each].order_id) for each in set(orders) - set(dead)} <= {"CANCELLING"}
    assert 0 < len(dead) < len(orders), "it was killed on the way"
    desk.tell("drop", *dead, "--reason", "test")
    assert {desk.status(waybill.order_id) for waybill in orders.values()} == {"CANCELLING"}
    assert desk.ids_in(DEAD) == []


def test_an_import_that_is_killed_may_be_run_again(fleet: Fleet, desk: Desk, tmp_path: Path) -> None:
    """The file stays as it is; a letter that is back twice is harmless, one that is missing would not be."""
    pick, ids, waybill = random.Random(20260103), [str(uuid.uuid4()) for _ in range(MANY)], make_waybill()
    file = tmp_path / "letters.jsonl"
    desk.bury_copies(ids, lambda _: waybill)
    desk.tell("export", str(file), "payments")
    content = file.read_bytes()
    fleet.take(DEAD)
    for _ in range(2):
        before = fleet.count(DEAD)
        killed_at_random(desk, pick, lambda before=before: fleet.count(DEAD) > before, "import", str(file))
        back = desk.ids_in(DEAD)[before:]
        assert back == ids[: len(back)]
    assert desk.tell("import", str(file))["imported"] == len(ids)
    assert set(desk.ids_in(DEAD)) == set(ids)
    assert file.read_bytes() == content


def test_interrupted_it_says_how_far_it_came(fleet: Fleet, desk: Desk) -> None:
    """Not in a terminal: exit code 130, a true count and no control characters, no letter on both sides."""
    ids = desk.bury(HOLDING)
    command = ("requeue", "--all", "payments", "--rate", "10")
    with at_work(desk, lambda: fleet.count("payments") >= 2, *command, stderr=subprocess.PIPE) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    alive = desk.ids_in("payments")
    assert process.returncode == 130
    assert said == f"Interrupted: {len(alive)} put back, {HOLDING - len(alive)} still dead letters.\n"
    assert 2 <= len(alive) < HOLDING
    assert alive + desk.ids_in(DEAD) == ids


def test_ctrl_c_while_the_bar_moves_leaves_each_letter_on_one_side(desk: Desk) -> None:
    """A key in a real terminal: the bar has moved, the count is true, exit code 130."""
    ids = desk.bury(HOLDING)
    ours, theirs = pty.openpty()
    command = ["setsid", "--ctty", *CELERY]  # makes the terminal its own, so that the key is a signal
    process = desk.start(
        "requeue", "--all", "--rate", "10", command=command, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        said = read_until(ours, lambda said: len(set(re.findall(r"(\d+)%", said))) > 2)
        os.write(ours, b"\x03")
        said += read_until(ours, lambda _: False)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    alive = desk.ids_in("payments")
    assert "putting back" in said
    assert f"Interrupted: {len(alive)} put back, {HOLDING - len(alive)} still dead letters." in said
    assert 2 <= len(alive) < HOLDING
    assert alive + desk.ids_in(DEAD) == ids


def read_until(terminal: int, condition: Callable[[str], bool]) -> str:
    """Read what is written to a terminal, until that is enough or nobody writes there any more."""
    said = b""
    while not condition(said.decode(errors="replace")):
        try:
            said += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
    return said.decode(errors="replace")


def test_two_operators_do_not_get_into_each_others_way(
    fleet: Fleet, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one puts letters back, the other waits, or is told so, instead of being shown half of them."""
    ids = desk.bury(HOLDING)
    with at_work(desk, lambda: fleet.count("payments") >= 1, "requeue", "--all", "--rate", "10") as first:
        with monkeypatch.context() as impatient:
            impatient.setattr(store, "_OTHER_DESK", 0.2)
            line = desk.refuse("list", "payments")
        assert "payments: another `dlq` command has its dead letters in hand. Try again when it ended." in line
        assert desk.refuse("requeue", "--all", "payments") == "Error: payments: no dead letters."
        assert first.wait(30) == 0
    assert desk.ids_in("payments") == ids


def test_two_operators_move_each_letter_once(fleet: Fleet, desk: Desk) -> None:
    """Started together by two, one requeue moves all and the other finds nothing left, or what was left to it."""
    ids = desk.bury(HOLDING)
    commands = [desk.start("requeue", "--all", "--json", stdout=subprocess.PIPE) for _ in range(2)]
    moved = [json.loads(process.communicate(timeout=60)[0] or '{"requeued": 0}')["requeued"] for process in commands]
    assert sum(moved) == HOLDING
    assert desk.ids_in("payments") == ids
    assert fleet.count(DEAD) == 0
