"""Beat's scheduler: it declares what it publishes to, and outlives everything the broker may do, as the workers do."""

import time
from typing import Any

from celery.beat import Scheduler

from shared.alive import say_alive
from shared.messaging.app import declare_topology
from shared.messaging.broker import BROKER_ERRORS
from shared.telemetry.logs import get_logger

_RETRY_AFTER = 1  # seconds

log = get_logger(__name__)


class PatientScheduler(Scheduler):  # type: ignore[misc]  # Celery ships no types
    """Celery's in-memory scheduler, which needs no schedule file.

    Celery's own waits for a broker that cannot be reached, but ends when one refuses it: its vhost is missing for a
    while, or its user is being made.
    """

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """Send what is due."""
        say_alive("beat")
        return super().tick(*args, **kwargs)

    def _ensure_connected(self) -> Any:
        while True:
            try:
                declare_topology(self.app)
                return super()._ensure_connected()
            except BROKER_ERRORS as error:
                log.warning("broker_refused", error=str(error), effect=f"beat tries again in {_RETRY_AFTER} s")
                time.sleep(_RETRY_AFTER)
