"""Flower that watches and cannot command: ``celery -A workers.dashboard flower``.

By itself Flower asks the workers by remote control. Its broker user has no right to send any, since to the broker a
message that asks a worker for its statistics looks like one that shuts it down. So it shows what workers say unasked.
"""

from typing import Any

from celery import Celery
from celery.app.control import Control

from shared.messaging.app import app_on_first_use


class NoControl(Control):  # type: ignore[misc]  # Celery ships no types
    """Remote control that sends nothing and so gets no answer."""

    def broadcast(self, *_: Any, **__: Any) -> list[Any]:
        """Send nothing."""
        return []


_make = app_on_first_use(__name__, "flower")


def __getattr__(name: str) -> Celery:
    """Make the app when Celery asks for it."""
    app: Celery = _make(name)
    app.control_cls = NoControl
    return app
