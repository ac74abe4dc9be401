"""What the commands of the desk share: filters, errors in one line, answers as text or JSON."""

import functools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from shared.deadletters.selection import Selection, moment
from shared.errors import WaybillError
from shared.messaging.broker import BROKER_ERRORS

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
INTERRUPTED = 130  # the exit code after Ctrl-C


#: The directory of whoever asks, where that is another process than this one.
here: ContextVar[Path] = ContextVar("here", default=Path())


class File(click.ParamType[Path]):
    """A file's path, seen from where the operator is."""

    name = "FILE"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:  # noqa: ARG002 - click's signature
        """Return the path."""
        return here.get() / str(value)


class Rate(click.ParamType[float]):
    """How many a second."""

    name = "N/s"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Read ``20`` or ``20/s``."""
        try:
            rate = float(str(value).removesuffix("/s"))
        except ValueError:
            rate = math.nan
        if not 0 < rate < math.inf:
            self.fail(f"{value}: not a rate; write 20 or 20/s, more than 0.", param, ctx)
        return rate


class _Moment(click.ParamType[datetime]):
    name = "TIME"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        """Read a time; say how to write one."""
        try:
            return moment(str(value))
        except (ValueError, OverflowError):
            self.fail(f"{value}: not a time; write 2026-05-01T03:00, or 90s, 15m, 2h, 3d ago.", param, ctx)


def filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the filters, and hand them over as one ``selection``."""

    @click.option("--task", help="Only this task, for example payments.charge.")
    @click.option("--error", help="Only errors that contain this text.")
    @click.option("--order", help="Only this order.")
    @click.option("--since", type=_Moment(), help="Only what died since: 2026-05-01T03:00 (UTC), or 15m, 2h, 3d ago.")
    @click.option("--before", type=_Moment(), help="Only what died before.")
    @functools.wraps(command)
    def filtered(*args: Any, task: Any, error: Any, order: Any, since: Any, before: Any, **options: Any) -> Any:
        selection = Selection(task=task, error=error, order=order, since=since, before=before)
        return command(*args, selection=selection, **options)

    return filtered


@contextmanager
def one_line() -> Iterator[None]:
    """End with one line and exit code 1 instead of a traceback; 130 after Ctrl-C."""
    try:
        yield
    except WaybillError as error:
        raise click.ClickException(first_line(error)) from None
    except BROKER_ERRORS as error:
        message = f"BROKER_URL: {first_line(error)}. What was not moved is still a dead letter."
        raise click.ClickException(message) from None
    except KeyboardInterrupt:
        click.echo("Interrupted. What was not moved is still a dead letter.", err=True)
        raise SystemExit(INTERRUPTED) from None


@contextmanager
def counting(total: int, verb: str, rest: str = "still dead letters") -> Iterator[list[str]]:
    """Yield a list for the ids of what was moved; stopped half-way, say how many of ``total`` were, and end.

    ``rest`` says of those that Ctrl-C left out where they are.
    """
    done: list[str] = []
    try:
        yield done
    except KeyboardInterrupt:
        click.echo(f"Interrupted: {len(done)} {verb}, {total - len(done)} {rest}.", err=True)
        raise SystemExit(INTERRUPTED) from None
    except WaybillError as error:
        raise WaybillError(f"{error} {len(done)} {verb}, {total - len(done)} not.") from error
    except BROKER_ERRORS as error:
        counts = f"{len(done)} {verb}, {total - len(done)} not; what was not moved is where it was"
        raise WaybillError(f"BROKER_URL: {first_line(error)}. {counts}.") from error


def say(data: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Tell what was done."""
    click.echo(json.dumps(data) if as_json else text)


def first_line(error: BaseException) -> str:
    """Return what an error says first, its kind where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
