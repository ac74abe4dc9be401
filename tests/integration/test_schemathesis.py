"""The API's description attacks the API as it is run, with a key and the workers behind it; ``make fuzz`` is longer."""

from __future__ import annotations

import re
from pathlib import Path

from stacks.fuzz import Attack
from tests.integration.nodes import Fleet

EXAMPLES = 4
LEAST = 1000  # requests


def test_no_request_gets_an_answer_that_is_not_described(fleet: Fleet, tmp_path: Path) -> None:
    """Every check in every phase, always the same requests: statuses, bodies, headers, tokens, methods, orders."""
    attack = Attack(tmp_path)
    with fleet.running("api", "payments", "delivery", "notifications", "orders", "recorder", **attack.variables):
        done = attack.run(fleet.api_url, EXAMPLES, seed=1)
    assert done.returncode == 0, done.stdout
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated, done.stdout
    assert int(generated[1]) >= LEAST
