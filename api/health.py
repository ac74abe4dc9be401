"""Is the process up, and what does it reach? Neither authenticated nor limited; names no address and no error."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Flask, current_app

from shared.database import get_database
from shared.process import broker_problem, redis_problem

_PATIENCE = 1.0  # seconds for all looks together
_NEEDED = frozenset({"database"})  # without the others orders are taken all the same

blueprint = Blueprint("health", __name__)


def _database_problem() -> None:
    # not in a transaction: on SQLite that would wait for whoever writes
    with closing(get_database("orders").engine.raw_connection()) as connection:
        connection.cursor().execute("SELECT 1")


class Readiness:
    """Looks at what the API uses, in parallel; who asks meanwhile shares the look that is under way."""

    def __init__(self, looks: dict[str, Callable[[], str | None]]) -> None:
        self._looks = looks
        self._pool = ThreadPoolExecutor(len(looks), thread_name_prefix="readiness")
        self._under_way: dict[str, Future[str | None]] = {}

    def check(self) -> dict[str, str]:
        """Return ``ok`` or ``unreachable`` for each; within about a second."""
        deadline = time.monotonic() + _PATIENCE
        looks = {name: self._look(name) for name in self._looks}
        return {name: _outcome(look, deadline - time.monotonic()) for name, look in looks.items()}

    def _look(self, name: str) -> Future[str | None]:
        look = self._under_way.get(name)
        if look is None or look.done():
            look = self._under_way[name] = self._pool.submit(self._looks[name])
        return look


def _outcome(look: Future[str | None], patience: float) -> str:
    try:
        return "unreachable" if look.result(max(0.0, patience)) else "ok"
    except Exception:  # whatever it is, it cannot be used
        return "unreachable"


def register(app: Flask) -> None:
    """Answer probes in ``app``."""
    looks = {"database": _database_problem, "broker": broker_problem, "redis": redis_problem}
    app.extensions["readiness"] = Readiness(looks)
    app.register_blueprint(blueprint)


@blueprint.get("/health/")
@blueprint.get("/livez")
def health() -> dict[str, bool]:
    """Answer that the API serves requests."""
    return {"ok": True}


@blueprint.get("/readyz")
def ready() -> tuple[dict[str, Any], int]:
    """Answer whether orders can be taken, and which neighbour is missing."""
    checks = current_app.extensions["readiness"].check()
    ok = all(checks[name] == "ok" for name in _NEEDED)
    return {"ok": ok, "checks": checks}, HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
