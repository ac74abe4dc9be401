"""What several kinds of tests share: waiting for a condition, an order's data, the logs as data."""

import contextlib
import io
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any, TypeVar
from unittest import mock

from click.testing import Result
from environs import FileAwareEnv

from shared import settings
from shared.contracts.events import Event, new_event
from shared.contracts.waybill import Waybill
from shared.settings import get_settings
from shared.telemetry.logs import configure_logging

T = TypeVar("T")

#: A good body for ``POST /v1/orders``; ``new_body`` gives a copy to change.
BODY: dict[str, Any] = {
    "customer_id": "cus_1",
    "items": [{"sku": "pizza", "quantity": 2}],
    "amount_cents": 2590,
    "currency": "EUR",
    "payment_method": "tok_ok",
    "address": {"line1": "Main St 1", "city": "Berlin", "postal_code": "10115", "country": "DE", "area": "north"},
}
REMOVED: Any = object()  # as a value for ``new_body``: leave the field out


def wait_until(condition: Callable[[], T], timeout: float = 10.0, every: float = 0.01) -> T:
    """Poll ``condition`` until it holds and return what it returned; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {timeout} s: {condition}")
        time.sleep(every)
    return result


def new_body(**changes: Any) -> dict[str, Any]:
    """Return a good order body with fields changed by their path: ``items__0__sku="x"``, ``address=REMOVED``."""
    body: Any = deepcopy(BODY)
    for path, value in changes.items():
        last: Any
        *parents, last = path.split("__")
        part = body
        for name in parents:
            part = part[int(name) if isinstance(part, list) else name]
        last = int(last) if isinstance(part, list) else last
        if value is REMOVED:
            del part[last]
        else:
            part[last] = value
    return body  # type: ignore[no-any-return]


def new_waybill(**changes: Any) -> Waybill:
    """Return the waybill of an order that nobody knows yet."""
    ids = {"order_id": str(uuid.uuid4()), "correlation_id": "corr-1"}
    return Waybill(**{**deepcopy(BODY), **ids, **changes})


class DeskCommands:
    """What tests do with the dead-letter desk, wherever a subclass runs its commands."""

    def run(self, *arguments: str, **environment: str) -> Result:
        """Run a command."""
        raise NotImplementedError

    def tell(self, *arguments: str, **environment: str) -> Any:
        """Run it with ``--json``; return what it says."""
        done = self.run(*arguments, "--json", **environment)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def refuse(self, *arguments: str, **environment: str) -> str:
        """Run what must fail; return its one line."""
        done = self.run(*arguments, **environment)
        assert done.exit_code == 1, done.output
        (line,) = done.stderr.splitlines()
        return line


def event(order_id: str, event_type: str, data: dict[str, Any] | None = None, discriminator: str = "") -> Event:
    """Return an event as some service would state it."""
    return new_event(
        event_type, order_id, source="test", correlation_id="corr-1", data=data, discriminator=discriminator
    )


@contextlib.contextmanager
def json_logs(level: str = "DEBUG") -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Log as a process of production does; yield a function that returns the lines so far, parsed."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, root_level = root.handlers[:], root.level
    with contextlib.redirect_stderr(stream):
        configure_logging(replace(get_settings(), log_format="json", log_level=level), "test")
    try:
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    finally:
        root.handlers[:] = handlers
        root.setLevel(root_level)


class _Spy:
    """Reads like an environment in which nothing is set, and notes each variable with its default."""

    def __init__(self) -> None:
        self.defaults: dict[str, Any] = {}
        self._env = FileAwareEnv()

    def __getattr__(self, kind: str) -> Any:
        """Return the reader of one kind of value."""
        read = getattr(self._env, kind)

        def noting(name: str, default: Any, **options: Any) -> Any:
            self.defaults[name] = default
            return read(name, default, **options)

        return noting


def variables_of_the_settings() -> dict[str, Any]:
    """Every variable that the settings read, with its default."""
    spy = _Spy()
    with mock.patch.object(settings, "FileAwareEnv", return_value=spy):
        settings.load()
    return spy.defaults
