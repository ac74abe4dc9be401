"""Publish without letting the broker hold the request.

An order is stored; what cannot be published now is published by the sweeper. A webhook is sent again by its sender.
So a request waits for the broker at most ``PATIENCE`` seconds, and not at all while it was unreachable a moment ago.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

from celery import Celery
from flask import current_app
from pybreaker import CircuitBreaker, CircuitBreakerError

from shared.contracts.saga import Dispatch
from shared.errors import Transient
from shared.messaging.app import declare_topology
from shared.messaging.broker import BROKER_ERRORS
from shared.messaging.dispatch import dispatch
from shared.telemetry.logs import get_logger, order_context

PATIENCE = 0.8  # seconds
_FAILURES = 2
_REST = 5  # seconds
_THREADS = 8

log = get_logger(__name__)


class Dispatcher:
    """This process's way to the broker."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="dispatch")
        self._breaker = CircuitBreaker(fail_max=_FAILURES, reset_timeout=_REST, throw_new_error_on_trip=False)
        self._prepared: Future[None] | None = None

    def prepare(self) -> None:
        """Declare the topology in the background, if the broker is there; whoever starts later does it again."""
        self._prepared = self._pool.submit(declare_topology, self._celery)

    def send(self, way: Dispatch) -> None:
        """Publish, or leave it to the sweeper; never raises for a broker that is away."""
        try:
            self.publish(partial(_dispatch, way=way))
        except Transient as error:
            log.warning(
                "dispatch_postponed",
                order_id=way.waybill.order_id,
                error=str(error),
                effect="the sweeper will publish it",
            )

    def publish(self, publish: Callable[[Celery], object]) -> None:
        """Call ``publish`` with the app; raise ``Transient`` when the broker did not confirm in time.

        What was not confirmed may have been published all the same.
        """
        if self._celery.conf.task_always_eager:
            publish(self._celery)
            return
        try:
            with self._breaker.calling():
                self._pool.submit(self._publish, publish).result(PATIENCE)
        except (*BROKER_ERRORS, TimeoutError, CircuitBreakerError) as error:
            raise Transient(f"{type(error).__name__}: {error}") from error

    def _publish(self, publish: Callable[[Celery], object]) -> None:
        if self._prepared:
            wait([self._prepared])  # on an empty broker there is nothing to publish to before
        publish(self._celery)


def dispatcher() -> Dispatcher:
    """Return the way to the broker of the app that serves the request."""
    return current_app.extensions["dispatcher"]  # type: ignore[no-any-return]


def _dispatch(celery: Celery, way: Dispatch) -> None:
    with order_context(way.waybill.order_id, way.waybill.correlation_id):
        dispatch(celery, way)
