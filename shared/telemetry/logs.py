"""structlog for the whole process: JSON lines, or readable ones in a terminal.

A line is a static event name plus fields. The order id and the correlation id are bound once, by whoever starts
the work (the API for a request, a step for a message), and appear on every line below.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars, merge_contextvars

from shared import cards
from shared.settings import Settings

_CHATTY = ("amqp", "kombu", "urllib3", "alembic", "werkzeug", "celery.beat")


def configure_logging(settings: Settings, process: str) -> None:
    """Send every log line of this process, the standard library's included, to stderr in one format."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    processors: list[Any] = [
        merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _logger, _name, event: {"process": process, **event},
    ]
    renderer: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        # the plain one: the default prints the locals of each frame, waybills among them
        else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    )
    structlog.configure(
        processors=[*processors, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer, _without_cards],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _without_cards(_logger: Any, _name: str, line: Any) -> str:
    """Mask what looks like a card number, from wherever it got into a line: a library quotes what it chokes on."""
    return cards.masked(line)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module."""
    return structlog.stdlib.get_logger(name)


@contextmanager
def order_context(order_id: str, correlation_id: str, **fields: Any) -> Iterator[None]:
    """Bind an order's ids to every log line and error report within the block."""
    with bound_contextvars(order_id=order_id, correlation_id=correlation_id, **fields):
        yield
