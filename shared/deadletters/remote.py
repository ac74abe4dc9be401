"""The desk of an embedded stack: its dead letters live in that process, so the command runs there.

The stack listens on a socket below ``VAR_DIR`` that only its owner may open; ``celery -A workers dlq`` sends its
arguments there and prints what comes back.
"""

import io
import json
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from celery import Celery

from shared.deadletters.options import here
from shared.settings import Settings
from shared.telemetry.logs import get_logger

_LONGEST_PATH = 100  # bytes; what a socket's address holds

log = get_logger(__name__)


def socket_of(settings: Settings) -> Path:
    """Return where an embedded stack with these settings listens; relative where the whole path would not fit."""
    path = settings.var_dir.absolute() / "embedded.sock"
    return path if len(str(path)) < _LONGEST_PATH else Path(os.path.relpath(path))


def forward(path: Path, args: Sequence[str]) -> int:
    """Have the stack behind ``path`` run a command; print its output, return its exit code."""
    if args[:1] == ["edit"] and "--help" not in args:  # the editor and its terminal are here
        return _edit(path, args)
    return _print(_ask(path, args))


def _edit(path: Path, args: Sequence[str]) -> int:
    waybill = _ask(path, [*args, "--print"])
    if waybill["code"]:
        return _print(waybill)
    text = click.edit(waybill["out"], extension=".json")
    if text is None:
        raise click.ClickException("not saved, so nothing was changed.")
    return _print(_ask(path, [*args, "--text", text]))


def _ask(path: Path, args: Sequence[str]) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
            client.sendall(json.dumps({"args": list(args), "here": str(Path.cwd())}).encode() + b"\n")
            return dict(json.loads(client.makefile().readline()))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it ended"
            raise click.ClickException(f"{path}: no embedded stack answers there ({reason}).") from error


def _print(answer: dict[str, Any]) -> int:
    sys.stdout.write(answer["out"])
    sys.stderr.write(answer["err"])
    return int(answer["code"])


_serving = threading.Event()


def is_here() -> bool:
    """Say whether this very process serves the socket."""
    return _serving.is_set()


@contextmanager
def serve(path: Path, group: click.Group, app: Celery) -> Iterator[None]:
    """Run commands of ``group`` for whoever connects, within the block; one at a time."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked = json.loads(self.rfile.readline())
            here.set(Path(asked["here"]))
            answer = _run(group, app, asked["args"])
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    path.unlink(missing_ok=True)
    with socketserver.UnixStreamServer(str(path), Handler) as server:
        path.chmod(0o600)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        _serving.set()
        try:
            yield
        finally:
            _serving.clear()
            server.shutdown()
            thread.join()
            path.unlink(missing_ok=True)


def _run(group: click.Group, app: Celery, args: list[str]) -> dict[str, Any]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out):  # nothing else of the stack writes there: logs go to standard error
        try:
            group.main(args, prog_name="celery dlq", standalone_mode=False, obj=SimpleNamespace(app=app))
        except click.ClickException as error:
            error.show(err)
            code = error.exit_code
        except (click.exceptions.Exit, SystemExit) as ending:
            code = int(getattr(ending, "exit_code", None) or getattr(ending, "code", None) or 0)
        except Exception as error:
            log.exception("dlq_failed")
            err.write(f"Error: {type(error).__name__}; see the log of the embedded stack.\n")
            code = 1
    return {"out": out.getvalue(), "err": err.getvalue(), "code": code}
