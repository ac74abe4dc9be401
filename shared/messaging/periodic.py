"""The base class of the periodic tasks: a run that cannot work now is dropped, the next one comes soon."""

from typing import Any

from celery import Task
from celery.exceptions import Ignore

from shared.errors import Transient
from shared.messaging.broker import BROKER_ERRORS
from shared.telemetry.logs import get_logger

log = get_logger(__name__)


class Periodic(Task):  # type: ignore[misc]  # Celery ships no types
    """A task that beat sends again and again; whatever is transient is left to the next run."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run once."""
        try:
            return self.run(*args, **kwargs)
        except (Transient, *BROKER_ERRORS) as error:
            log.warning("run_dropped", task=self.name, error=str(error), effect="the next run tries again")
            raise Ignore from error
