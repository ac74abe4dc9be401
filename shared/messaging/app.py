"""Make a process's Celery app. One app per process: canvas in a pool thread uses the process's default app."""

import sys
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps
from celery.signals import beat_init, before_task_publish, celeryd_init, setup_logging, worker_process_init
from celery.worker.consumer.tasks import Tasks

from shared.alive import ALIVE_EVERY, say_alive
from shared.database import forget_connections
from shared.messaging import memory, topology
from shared.process import settings_or_exit, start_process


def create_app(process: str, *services: str) -> Celery:
    """Return the app of ``process``: it can publish to every queue and, as a worker, serves those of ``services``."""
    memory.register()
    app = Celery(process, include=[f"workers.{service}.tasks" for service in services])
    app.config_from_object("celeryconfig")
    app.set_default()

    @app.on_after_finalize.connect(weak=False)
    def _serve_only_these(sender: Celery, **_: Any) -> None:
        sender.amqp.queues.select(services)

    app.steps["consumer"].update([DeclareTopology, SayAlive])

    @setup_logging.connect(weak=False)
    def _keep_our_logging(**_: Any) -> None:
        """Stop Celery from setting up its own, by being here."""

    @celeryd_init.connect(weak=False)
    def _start_worker(**_: Any) -> None:
        start_process(process, databases=services)

    @beat_init.connect(weak=False)
    def _start_beat(**_: Any) -> None:
        start_process("beat")

    return app


def app_on_first_use(module: str, process: str, *services: str) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that makes ``app`` when Celery first asks for it.

    Importing a service's package passes through its parents, and only the one that was named may make an app.
    """

    def module_getattr(name: str) -> Any:
        if name != "app":
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        settings_or_exit(process)
        app = create_app(process, *services)
        setattr(sys.modules[module], name, app)
        return app

    return module_getattr


def declare_topology(app: Celery) -> None:
    """Declare every exchange and queue at the app's broker."""
    topology.declare(app.connection_for_write(), app.conf.task_queues)


class DeclareTopology(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Declares the topology each time a worker connects, before it consumes: a vhost may have been made anew."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, parent: Any) -> None:
        """Declare."""
        declare_topology(parent.app)


class SayAlive(bootsteps.StartStopStep):  # type: ignore[misc]
    """Says so for as long as the worker consumes: from its own loop, so not while that hangs or is connecting."""

    requires = (Tasks,)

    def __init__(self, parent: Any, **options: Any) -> None:
        self._entry: Any = None
        super().__init__(parent, **options)

    def start(self, parent: Any) -> None:
        """Begin."""
        say_alive(parent.app.main)
        self._entry = parent.timer.call_repeatedly(ALIVE_EVERY, say_alive, (parent.app.main,))

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """End."""
        if self._entry:
            self._entry.cancel()


# Celery orders the steps by what they require: without this a worker may consume before its dead-letter queue is there.
Tasks.requires = (*Tasks.requires, DeclareTopology)


@before_task_publish.connect
def _mask_arguments(headers: dict[str, Any], body: Any, **_: Any) -> None:
    """Show the order id instead of the waybill wherever Celery shows arguments: Flower, events, its own logs."""
    arguments = body[0]
    order_id = arguments[0].get("order_id", "?") if arguments and isinstance(arguments[0], dict) else "-"
    headers["argsrepr"] = f"({order_id})"
    headers["kwargsrepr"] = "{}"


@worker_process_init.connect
def _after_fork(**_: Any) -> None:
    """A pool child must not share its parent's database connections."""
    forget_connections(close=False)
