"""The embedded stack's provider tells its API of a reversal, although nobody reads its ledger for an hour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from stacks.local import ROOT

SCRIPT = """
import sys, urllib3
from pathlib import Path
from shared.settings import Settings
from shared.telemetry.logs import configure_logging
from stacks.embedded import embedded_stack
from tests.e2e.conftest import Client

chosen = Settings(
    var_dir=Path(sys.argv[1]), port=0, reconcile_every=3600, sweep_every=1, auth_disabled=True, log_level="WARNING"
)
configure_logging(chosen, "embedded")
with embedded_stack(chosen) as running:
    client = Client(f"http://127.0.0.1:{running.port}", running.psp_url)
    path = client.place()
    order = client.follow(path, "COMPLETED")
    body = {"transaction_id": order["transaction_id"]}
    assert urllib3.request("POST", f"{running.psp_url}/reverse", json=body).status == 200
    print(client.follow(path, "CANCELLED")["failure"], *client.types(path))
    client.close()
"""


def test_a_reversal_cancels_an_order_of_the_embedded_stack(tmp_path: Path) -> None:
    """One process, real HTTP between provider and API: cancelled, the courier released, nothing refunded on top."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    failure, *events = done.stdout.split()
    assert failure == "PAYMENT_REVERSED"
    assert {"payment.reversed", "delivery.released", "order.cancelled"} <= set(events)
    assert "payment.refunded" not in events
