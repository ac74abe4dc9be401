"""The one Task base class. A task is an operation on a waybill; everything around it is here.

    claim the lease or replay  ->  operation  ->  publish its event  ->  publish the next step  ->  acknowledge

The message is acknowledged only after the broker confirmed the event and the next step, so a crash anywhere
before that means redelivery, and a step that already happened just says so again.
"""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

from celery import Task
from celery.canvas import maybe_signature
from celery.exceptions import Reject
from celery.utils.time import get_exponential_backoff_interval

from shared.contracts import saga
from shared.contracts.events import EventType, new_event
from shared.contracts.queues import queue_of
from shared.contracts.waybill import Waybill, parse_waybill
from shared.dedup import step_leases
from shared.errors import Declined, MalformedMessage, Transient, Waiting
from shared.messaging.broker import BROKER_ERRORS
from shared.messaging.events import publish_events
from shared.settings import get_settings
from shared.telemetry.errors import report_error
from shared.telemetry.logs import get_logger, order_context
from shared.telemetry.metrics import record_step

_BUSY_RETRY = 2.0  # seconds until another copy of the step is asked for its outcome again
_MAX_TEXT = 500
_MAX_FRAMES = 5

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation did: the event that states it (None: nothing to state), its data, the waybill's stamp.

    ``discriminator`` tells apart events of one type about one order. ``learned`` are earlier facts, as type and data,
    that the operation found out about; they are stated first.
    """

    event: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    stamp: Mapping[str, Any] = field(default_factory=dict)
    discriminator: str = ""
    learned: Sequence[tuple[str, Mapping[str, Any]]] = ()


class Step(Task):  # type: ignore[misc]  # Celery ships no types
    """A step of the saga: ``run(waybill) -> Outcome``, which may be called any number of times."""

    abstract = True
    max_retries = None  # counted here, to park instead of failing
    run: Callable[[Waybill], Outcome]

    def __call__(self, *args: Any, **_: Any) -> str | None:
        """Run the step for the waybill in the message; return the type of the event that was published."""
        waybill = self._read(args)
        with order_context(waybill.order_id, waybill.correlation_id, task=self.name):
            try:
                return self._drive(waybill)
            except BROKER_ERRORS as error:
                self._hand_back(waybill, error)

    def apply(self, args: Any = None, kwargs: Any = None, chain: Any = None, **options: Any) -> Any:
        """Run eagerly; Celery forgets the rest of the chain then, so it rides in the headers."""
        if chain:
            options["headers"] = {**(options.get("headers") or {}), "chain": chain}
        return super().apply(args, kwargs, **options)

    def _read(self, args: tuple[Any, ...]) -> Waybill:
        try:
            return parse_waybill(args[0] if args else None)
        except MalformedMessage as error:
            log.warning("message_malformed", task=self.name, task_id=self.request.id, error=str(error))
            raise Reject(error, requeue=False) from error

    def _drive(self, waybill: Waybill) -> str | None:
        try:
            outcome = self._outcome(waybill)
        except Declined as declined:
            return self._turn_round(waybill, declined)
        except Waiting as error:
            self.request.retries -= 1  # retry() adds one
            record_step(self.name, "waiting")
            if self.request.is_eager:
                time.sleep(error.retry_after)  # called eagerly, no broker makes the time pass
            self._publish_retry(error, error.retry_after)
        except Transient as error:
            self._retry(waybill, error)
        except Exception as error:
            self._park(waybill, error)
        return self._go_on(waybill, outcome)

    def _outcome(self, waybill: Waybill) -> Outcome:
        """Replay the stored outcome, or run the operation under the lease."""
        leases, task_id = step_leases(), self.request.id
        # The stamps tell where in which chain this is: a customer is told of the fulfilment and of a cancellation.
        key = "/".join([waybill.order_id, self.name, *sorted(waybill.stamps)])
        claim = leases.claim(key, task_id)
        if claim.busy:
            raise Waiting("another copy of this step is running", _BUSY_RETRY)
        if claim.outcome is not None:
            return Outcome(**claim.outcome)
        try:
            outcome = self.run(waybill)
        except Transient:
            raise  # the retry has our id, and the lease is its own
        except Exception:
            leases.release(key, task_id)
            raise
        if outcome.event:
            leases.complete(key, task_id, asdict(outcome))
        else:  # "there was nothing to undo" may be otherwise the next time
            leases.release(key, task_id)
        return outcome

    def _go_on(self, waybill: Waybill, outcome: Outcome) -> str | None:
        for event, data in outcome.learned:
            self._state(waybill, event, data)
        if outcome.event:
            self._state(waybill, outcome.event, outcome.data, outcome.discriminator)
        rest = self.request.chain or (self.request.headers or {}).get("chain")
        if rest:
            stamped = waybill.stamped(self.name, outcome.stamp)
            maybe_signature(rest[-1], app=self.app).apply_async((stamped.to_dict(),), chain=rest[:-1])
        self.request.chain = None  # published here, where a failure means another run, and not by Celery
        log.info("step_done", outcome=outcome.event)
        record_step(self.name, "done")
        return outcome.event

    def _turn_round(self, waybill: Waybill, declined: Declined) -> str | None:
        """A business no: state it, drop the rest of the chain, undo what was done."""
        log.info("step_declined", code=declined.code)
        record_step(self.name, "declined")
        if declined.event:
            self._state(waybill, declined.event, {"code": declined.code})
        saga.backward(waybill).apply_async()
        self.request.chain = None
        return declined.event

    def _retry(self, waybill: Waybill, error: Transient) -> NoReturn:
        attempt, delay = self.request.retries, self._backoff()
        if delay is None:
            self._park(waybill, error)
        record_step(self.name, "retrying")
        log.info("step_retrying", attempt=attempt + 1, delay=delay, error=_text(error))
        data = {"step": self.name, "attempt": attempt + 1, "delay": delay, "error": _text(error)}
        self._state(waybill, EventType.STEP_RETRYING, data, f"{self.name}/{self.request.id}/{attempt}")
        self._publish_retry(error, delay)

    def _backoff(self) -> int | None:
        """Return the seconds until the next attempt, None when the attempts are spent."""
        settings, attempt = get_settings(), self.request.retries
        if attempt >= settings.step_max_retries:
            return None
        return max(1, int(get_exponential_backoff_interval(1, attempt, settings.step_backoff_max, full_jitter=True)))

    def _hand_back(self, waybill: Waybill, error: Exception) -> NoReturn:
        """The broker did not take the event or the next step: run again in a while, this message is the only record.

        Not at once, since a queue that is full for a minute would use up the delivery limit within a second; nor for
        ever, since the rest of the chain may name a queue that never was.
        """
        log.warning("publish_failed", error=_text(error), effect="the step runs again")
        record_step(self.name, "handed_back")
        if (delay := self._backoff()) is not None:
            self._publish_retry(error, delay)
        try:
            self._park(waybill, error)
        except BROKER_ERRORS:
            raise Reject(error, requeue=False) from error

    def _publish_retry(self, error: Exception, delay: float) -> NoReturn:
        """Hand the message to the broker's delay; whole seconds of at least 1, as its delay queues want it."""
        try:
            raise self.retry(exc=error, countdown=max(1, round(delay)), queue=queue_of(self.name))
        except Reject as reject:  # Celery would drop the message when the retry cannot be published
            raise Reject(reject.reason, requeue=True) from reject

    def _park(self, waybill: Waybill, error: Exception) -> NoReturn:
        """Say so and dead-letter the message unchanged, the rest of the chain inside it."""
        record_step(self.name, "parked")
        if not isinstance(error, Transient):
            report_error(error)
        log.error("step_parked", error=_text(error), exc_info=not isinstance(error, Transient))
        data = {
            "step": self.name,
            "task_id": self.request.id,
            "attempts": self.request.retries + 1,
            "error": _text(error),
            "traceback": "".join(traceback.format_tb(error.__traceback__)[-_MAX_FRAMES:]),
        }
        self._state(waybill, EventType.STEP_PARKED, data, f"{self.name}/{self.request.id}")
        raise Reject(error, requeue=False) from error

    def _state(self, waybill: Waybill, event: str, data: Mapping[str, Any], discriminator: str = "") -> None:
        fact = new_event(
            event,
            waybill.order_id,
            source=queue_of(self.name),
            correlation_id=waybill.correlation_id,
            data=data,
            discriminator=discriminator,
        )
        publish_events(self.app, fact)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MAX_TEXT]
