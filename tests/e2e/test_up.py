"""``make up`` and ``make down``: everything is up, Flower shows the queues, and nothing is left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import urllib3

from stacks.local import ROOT
from stacks.processes import Ports, poll, start_ticks
from tests.support import BODY

TIMEOUT = 60  # seconds


@pytest.fixture
def ports() -> Ports:
    """Ports of one's own."""
    return Ports.free()


@pytest.fixture
def environment(tmp_path: Path, ports: Ports) -> Iterator[dict[str, str]]:
    """What a developer has set; what is up at the end is taken down."""
    chosen = {Ports.VARIABLES[name]: str(port) for name, port in asdict(ports).items()}
    environment = {**os.environ, **chosen, "VAR_DIR": str(tmp_path / "var")}
    yield environment
    stacks_up(environment, "down")


def stacks_up(environment: dict[str, str], command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command behind ``make up`` and ``make down``."""
    words = [sys.executable, "-m", "stacks.up", command, *options]
    return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)


def test_up_serves_orders_and_down_leaves_nothing(environment: dict[str, str], ports: Ports) -> None:
    """An order completes, Flower's broker page counts the queues, every process ends with ``down``."""
    up = stacks_up(environment, "up")
    assert up.returncode == 0, up.stderr
    processes = json.loads(stacks_up(environment, "status", "--json").stdout)["processes"]
    order = urllib3.request(
        "POST", f"http://127.0.0.1:{ports.api}/v1/orders", json=BODY, headers={"Prefer": "wait=20"}, retries=False
    )
    assert (order.status, order.json()["status"]) == (201, "COMPLETED")
    page = f"http://127.0.0.1:{ports.flower}/broker"
    assert poll(lambda: '<tr id="payments">' in urllib3.request("GET", page, retries=False).data.decode(), TIMEOUT)
    assert stacks_up(environment, "up").stdout.startswith("Already up")
    assert stacks_up(environment, "down").returncode == 0
    assert not [each["name"] for each in processes if start_ticks(each["pid"])]
    assert not json.loads(stacks_up(environment, "status", "--json").stdout)["up"]


def test_a_port_that_is_taken_is_named(environment: dict[str, str], ports: Ports) -> None:
    """One line with the variable to change, and nothing is started."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports.redis))
        listener.listen()
        up = stacks_up(environment, "up")
    assert (up.returncode, up.stderr.count("\n")) == (1, 1)
    assert f"port {ports.redis} (for redis) is taken: set UP_REDIS_PORT" in up.stderr
    assert json.loads(stacks_up(environment, "status", "--json").stdout)["processes"] == []
