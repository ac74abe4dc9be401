"""``Prefer: wait=N`` (RFC 7240): hold a request until its order has an outcome.

One thread looks for all requests of the process that wait, with one query a round; it ends when nobody waits.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable

from flask import Flask
from werkzeug.http import parse_dict_header

from api.outcomes import has_outcome
from shared.errors import Transient
from shared.settings import get_settings
from shared.telemetry.logs import get_logger
from workers.orders import listing
from workers.orders.operations import Order

MAX_WAIT = 30  # seconds
_EVERY = 0.05  # seconds
_DIGITS = 9  # more of them are no more patience

log = get_logger(__name__)


def preferred_wait(header: str) -> int | None:
    """Return for how many seconds a client wants to wait, at most ``MAX_WAIT``; None when it does not say."""
    preferences = {name.lower(): value for name, value in parse_dict_header(header).items()}
    wait = (preferences.get("wait") or "").partition(";")[0].strip()
    if wait.isascii() and wait.isdigit():
        return min(int(wait[:_DIGITS]), MAX_WAIT)
    return 0 if "respond-async" in preferences else None


class Waiting:
    """The requests of this process that wait; ``most`` of them at once, so that they leave threads for the others."""

    def __init__(self, most: int, settled: Callable[[Order], bool]) -> None:
        self._places = threading.BoundedSemaphore(most)
        self._settled = settled
        self._looked = threading.Condition()
        self._wanted: Counter[str] = Counter()
        self._rows: dict[str, Order] = {}
        self._looking = False

    def wait(self, order: Order, seconds: float) -> tuple[Order, bool]:
        """Return the order once it is settled or the seconds are over, and whether there was room to wait."""
        if not self._places.acquire(blocking=False):
            return order, False
        try:
            with self._looked:
                return self._wait(order, seconds), True
        finally:
            self._places.release()

    def _wait(self, order: Order, seconds: float) -> Order:
        self._wanted[order.id] += 1
        if not self._looking:
            self._looking = True
            threading.Thread(target=self._look, name="waiting", daemon=True).start()
        self._looked.wait_for(lambda: self._settled(self._rows.get(order.id, order)), seconds)
        self._wanted[order.id] -= 1
        if not self._wanted[order.id]:
            del self._wanted[order.id]
        return self._rows.get(order.id, order)

    def _look(self) -> None:
        while wanted := self._still_wanted():
            try:
                rows = {order.id: order for order in listing.by_ids(wanted)}
            except Transient as error:
                log.warning("wait_failed", error=str(error), effect="looking again")
                rows = {}
            with self._looked:
                self._rows = rows
                self._looked.notify_all()
            time.sleep(_EVERY)

    def _still_wanted(self) -> list[str]:
        with self._looked:
            self._looking = bool(self._wanted)
            return list(self._wanted)


def register(app: Flask) -> None:
    """Let requests of ``app`` wait, on half of its threads at most."""
    app.extensions["waiting"] = Waiting(max(1, get_settings().web_threads // 2), has_outcome)
