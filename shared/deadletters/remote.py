"""The desk of an embedded stack: its dead letters live in that process, so the command runs there.

The stack listens on a loopback port and keeps the number, with a key, in a file below ``VAR_DIR`` that only its owner
may read; ``celery -A workers dlq`` sends its arguments there and prints what comes back. (A Unix socket would do, were
its path not limited to 100 bytes.)
"""

import hmac
import io
import json
import os
import secrets
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

_LOOPBACK = "127.0.0.1"
_CONNECT_TIMEOUT = 5  # seconds
_LONGEST = 4_000_000  # bytes of a request; an edited waybill is part of it

log = get_logger(__name__)


def address_file(settings: Settings) -> Path:
    """Return the file in which an embedded stack with these settings says where it listens."""
    return settings.var_dir.absolute() / "embedded.json"


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
    try:
        address = json.loads(path.read_text())
        with socket.create_connection((_LOOPBACK, address["port"]), _CONNECT_TIMEOUT) as client:
            client.settimeout(None)  # a command takes as long as it takes
            asked = {"key": address["key"], "args": list(args), "here": str(Path.cwd())}
            client.sendall(json.dumps(asked).encode() + b"\n")
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
    """Run commands of ``group`` for whoever can read ``path``, within the block; one at a time."""
    key = secrets.token_urlsafe()

    class Handler(socketserver.StreamRequestHandler):
        timeout = _CONNECT_TIMEOUT

        def handle(self) -> None:
            asked = json.loads(self.rfile.readline(_LONGEST))
            if not hmac.compare_digest(str(asked.pop("key", "")).encode(), key.encode()):
                return
            here.set(Path(asked["here"]))
            answer = _run(group, app, asked["args"])
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    class Server(socketserver.TCPServer):
        def handle_error(self, *_: Any) -> None:
            log.warning("desk_request_failed", exc_info=True)

    with Server((_LOOPBACK, 0), Handler) as server:
        _write_privately(path, json.dumps({"port": server.server_address[1], "key": key}))
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


def _write_privately(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)


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
