"""The embedded stack: API, workers, recorder, beat and payment provider in one process, no server needed.

Same code, same tasks, same migrations as on real servers; only the broker and Redis live in memory. What they
forget at a restart the sweeper drives on. ``python -m stacks.embedded`` serves until interrupted.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from celery import Celery
from celery.beat import Service
from celery.worker import state
from werkzeug.serving import WSGIRequestHandler, make_server

from api import create_app
from shared import database, migrations, settings
from shared.deadletters import remote
from shared.errors import WaybillError
from shared.messaging.app import declare_topology
from shared.settings import SERVICES, Settings
from shared.telemetry.logs import configure_logging
from simulators.ledger import Ledger
from simulators.psp import serve
from simulators.webhooks import new_secret
from workers.delivery.roster import load_roster
from workers.orders import operations
from workers.orders.recorder import Recorder

ROSTER = Path(__file__).resolve().parent.parent / "deploy" / "couriers.json"
_START_TIMEOUT = 30.0  # seconds


class _Http11(WSGIRequestHandler):
    """Keeps connections open and leaves the logging to the API."""

    protocol_version = "HTTP/1.1"

    def log_request(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def embedded_stack(chosen: Settings) -> Iterator[Settings]:
    """Run the whole fleet within the block; yield the settings it runs with. A ``port`` of 0 takes a free one."""
    with contextlib.ExitStack() as stack:
        psp = None
        if chosen.psp_url is None:
            psp = stack.enter_context(serve(Ledger(chosen.var_dir / "psp.db")))
            secrets = chosen.payments_webhook_secrets or (new_secret(),)
            chosen = replace(chosen, psp_url=psp.url, payments_webhook_secrets=secrets)
        settings.use(chosen)
        stack.callback(database.forget_connections)
        for service in SERVICES:
            migrations.upgrade(service)
        load_roster(ROSTER)
        from workers import app  # noqa: PLC0415 - makes the process's app, which reads the settings

        declare_topology(app)
        operations.wake_all()
        recorder = Recorder(app)
        stack.enter_context(_thread(recorder.serve, lambda: _tell(recorder)))
        stack.enter_context(_worker(app))
        stopping = threading.Event()
        stack.enter_context(_thread(lambda: _beat(app, stopping), stopping.set))
        from workers.orders.desk import dlq  # noqa: PLC0415 - as above

        stack.enter_context(remote.serve(remote.address_file(chosen), dlq, app))
        server = make_server(
            chosen.api_host, chosen.port, create_app(celery=app), threaded=True, request_handler=_Http11
        )
        stack.enter_context(_thread(server.serve_forever, server.shutdown))
        if psp:
            url = f"http://{chosen.api_host}:{server.port}/v1/webhooks/payments"
            psp.webhooks.send_to(url, chosen.payments_webhook_secrets)
        yield replace(chosen, port=server.port)


def _beat(app: Celery, stopping: threading.Event) -> None:
    """Send the periodic tasks. Celery's own loop would take over the process's logs and sleep through the end."""
    scheduler = Service(app, scheduler_cls=app.conf.beat_scheduler).get_scheduler()  # else it keeps a file
    while not stopping.wait(scheduler.tick()):
        pass


def _tell(recorder: Recorder) -> None:
    recorder.should_stop = True


@contextlib.contextmanager
def _worker(app: Celery) -> Iterator[None]:
    """Serve every queue in a threads pool of this process."""
    ready = threading.Event()
    worker = app.WorkController(
        pool="threads",
        hostname="embedded@localhost",
        ready_callback=lambda _consumer: ready.set(),
        without_heartbeat=True,
        without_mingle=True,
        without_gossip=True,
    )

    def stop() -> None:
        state.should_stop = 0  # the exit code: warm, what runs is finished

    try:
        with _thread(worker.start, stop):
            if not ready.wait(_START_TIMEOUT):
                raise WaybillError("the embedded worker did not start; see the log above")
            yield
    finally:
        state.should_stop = None


@contextlib.contextmanager
def _thread(run: Callable[[], Any], stop: Callable[[], Any]) -> Iterator[None]:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(_START_TIMEOUT)


def main() -> int:
    """Serve until SIGINT or SIGTERM."""
    try:
        chosen = _open_without_key(settings.get_settings())
        configure_logging(chosen, "embedded")
        with embedded_stack(chosen) as running:
            sys.stderr.write(f"Waybill serves http://{running.api_host}:{running.port}/v1/orders (Ctrl-C ends it)\n")
            _wait_for_signal()
    except (WaybillError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _open_without_key(chosen: Settings) -> Settings:
    """Ask for no token where none could be checked: the first order needs nothing but curl."""
    return chosen if chosen.jwt_secret or chosen.jwt_jwks_url else replace(chosen, auth_disabled=True)


def _wait_for_signal() -> None:
    stop = threading.Event()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    stop.wait()


if __name__ == "__main__":
    sys.exit(main())
