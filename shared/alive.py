"""A sign of life for processes without a port: a file below ``VAR_DIR/alive`` that is never older than some seconds.

Who watches them (a container's health check) looks at the file's age and needs no right on the broker for it.
"""

import time
from contextlib import suppress

from shared.settings import get_settings

ALIVE_EVERY = 5.0  # seconds

_said: dict[str, float] = {}


def say_alive(process: str) -> None:
    """Touch the file of ``process``; cheap enough to be called in every turn of a loop."""
    now = time.monotonic()
    if now - _said.get(process, -ALIVE_EVERY) < ALIVE_EVERY / 2:
        return
    _said[process] = now
    path = get_settings().var_dir / "alive" / process
    with suppress(OSError):  # nobody can watch then, which is no reason to end
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
