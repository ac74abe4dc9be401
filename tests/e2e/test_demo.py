"""The demo: `python -m stacks.demo` as a person runs it, in a folder of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 100  # seconds; the demo's own limit is 60


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start the demo with ``folder`` for its data; whatever else is set must not reach it."""
    elsewhere = {"BROKER_URL": "amqp://127.0.0.1:1//", "REDIS_URL": "redis://127.0.0.1:1", "PORT": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "stacks.demo", *options],
        env={**os.environ, **elsewhere, "VAR_DIR": str(folder)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *options: str) -> tuple[int, str, str]:
    """Run the demo to its end; return its exit code, output and errors."""
    with start(folder, *options) as demo:
        try:
            output, errors = demo.communicate(timeout=DEADLINE)
        finally:
            demo.kill()
    return demo.returncode, output, errors


def summary_of(output: str) -> dict[str, Any]:
    """Read what ``--json`` printed, which is JSON alone."""
    return dict(json.loads(output))


def test_every_order_ends_as_its_fate_says_and_the_ledger_agrees(tmp_path: Path) -> None:
    """30 orders of all fates, exit code 0, and no word but the summary."""
    code, output, errors = run(tmp_path, "--orders", "30", "--json")
    summary = summary_of(output)
    assert (code, errors, summary["differences"]) == (0, "", [])
    assert summary["statuses"] == {"COMPLETED": 23, "CANCELLED": 6, "AWAITING_PAYMENT": 1}
    assert summary["ledger"] == summary["orders_say"]
    money = summary["ledger"]["EUR"]
    assert 0 < money["refunded_cents"] < money["captured_cents"]
    assert summary["latency"]["orders"] == 29
    assert 0 < summary["latency"]["p50_seconds"] <= summary["latency"]["p99_seconds"] < 60
    kept = Path(summary["folder"])
    assert kept.is_relative_to(tmp_path)
    assert (kept / "demo.log").stat().st_size > 0


def test_a_charge_that_no_order_knows_makes_the_demo_fail_and_say_so(tmp_path: Path) -> None:
    """The extra charge is on the provider's real ledger; the lines tell where the two sides differ."""
    code, output, errors = run(tmp_path, "--orders", "30", "--stray-charge")
    assert (code, errors) == (1, "")
    disagreements = [line for line in output.splitlines() if line.startswith("Disagree")]
    assert len(disagreements) == 2
    assert "charge of 666 EUR (cents) under demo-stray-charge" in disagreements[0]
    assert "the orders say" in disagreements[1]
    assert "Agreed" not in output


def test_an_interrupted_demo_ends_without_a_traceback(tmp_path: Path) -> None:
    """Ctrl-C while orders are under way: one line, and exit code 130."""
    with start(tmp_path) as demo:
        try:
            assert demo.stdout is not None
            line = next(line for line in demo.stdout if "COMPLETED" in line)
            demo.send_signal(signal.SIGINT)
            _, errors = demo.communicate(timeout=DEADLINE)
        finally:
            demo.kill()
    assert line
    assert (demo.returncode, errors) == (130, "Interrupted.\n")


@pytest.mark.parametrize("count", ["29", "201", "many"])
def test_a_number_of_orders_that_cannot_be_is_refused_in_one_line(tmp_path: Path, count: str) -> None:
    """Too few for all fates, too many for one page, or no number."""
    code, _, errors = run(tmp_path, "--orders", count)
    assert code == 2
    assert "--orders" in errors.splitlines()[-1]
    assert not list(tmp_path.iterdir())
