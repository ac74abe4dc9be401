"""The kinds of failure. Everything that is none of these is a bug, and parks the step at once."""

from collections.abc import Iterable

_MOST_FIELDS = 10


class WaybillError(Exception):
    """Root of the errors that this project raises on purpose."""


class ConfigurationError(WaybillError):
    """A setting is missing or wrong; the message names the variable and what to do."""


class MalformedMessage(WaybillError):
    """A message breaks its schema; it can never be processed as it is. Names fields, never what they hold."""

    def __init__(self, what: str, fields: Iterable[str]) -> None:
        super().__init__(f"{what}: wrong or missing: {', '.join(sorted(map(str, fields))[:_MOST_FIELDS])}")


class Transient(WaybillError):
    """It may work later: a timeout, a lost connection, a lock, a provider's 5xx."""


class Waiting(Transient):
    """It cannot work yet through no fault of the step; waiting uses up no attempt.

    ``retry_after`` is in seconds.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Declined(WaybillError):
    """A business no: the saga turns round and undoes what was done.

    ``event`` is the type of the event that states the fact, None where another event states it already;
    ``code`` is what the client reads as the order's failure.
    """

    def __init__(self, code: str, *, event: str | None) -> None:
        super().__init__(code)
        self.code = code
        self.event = event
