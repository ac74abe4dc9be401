"""A payment provider to test against: its own process, its own ledger. ``python -m simulators.psp``.

``POST /charge`` and ``POST /refund`` want an ``Idempotency-Key``; ``GET /ledger`` is the truth about money;
``POST /faults`` makes it misbehave, and tokens such as ``tok_declined`` force one outcome. ``POST /reverse`` takes a
charge back and, with ``PSP_WEBHOOK_URL`` and ``PSP_WEBHOOK_SECRET`` set, tells so by a webhook.
"""

import argparse
import signal
import socket
import sqlite3
import sys
import threading
from dataclasses import asdict, fields
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any, Self
from urllib.parse import urlsplit

from flask import Flask, Response, jsonify, request
from marshmallow import EXCLUDE, Schema, ValidationError, validate
from marshmallow import fields as field
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server, select_address_family

from shared.errors import ConfigurationError
from shared.settings import Settings, get_settings
from simulators.faults import Faults, Rates
from simulators.ledger import Answer, Ledger
from simulators.webhooks import Webhooks

_MAX_CENTS = 10**12  # keeps every sum within SQLite's 64 bits
_MAX_SEQ = 2**63 - 1
_HOUR = 3600  # seconds; no wait is longer
_POLL = 0.05  # seconds between two looks whether the server shall stop


_AMOUNT = validate.Range(min=1, max=_MAX_CENTS)


class _ChargeSchema(Schema):
    amount_cents = field.Integer(required=True, strict=True, validate=_AMOUNT)
    currency = field.String(required=True, validate=validate.Regexp(r"^[A-Z]{3}\Z"))
    payment_method = field.String(required=True, validate=validate.Regexp(r"^tok_\w+\Z"))


class _RefundSchema(Schema):
    transaction_id = field.String(required=True)
    amount_cents = field.Integer(strict=True, validate=_AMOUNT)


class _ReverseSchema(Schema):
    transaction_id = field.String(required=True)


class _PageSchema(Schema):
    after = field.Integer(load_default=0, validate=validate.Range(min=0, max=_MAX_SEQ))
    limit = field.Integer(load_default=-1, validate=validate.Range(min=1, max=_MAX_SEQ))


_RATE = validate.Range(min=0, max=1)
_FaultsSchema = Schema.from_dict(
    {
        "error_rate": field.Float(validate=_RATE),
        "timeout_before_rate": field.Float(validate=_RATE),
        "timeout_after_rate": field.Float(validate=_RATE),
        "decline_rate": field.Float(validate=_RATE),
        "latency_ms": field.Integer(strict=True, validate=validate.Range(min=0, max=_HOUR * 1000)),
        "timeout_seconds": field.Float(validate=validate.Range(min=0, max=_HOUR)),
        "seed": field.Integer(strict=True),
    }
)
assert set(_FaultsSchema().fields) == {each.name for each in fields(Rates)}  # noqa: S101 - a new rate needs a rule


def create_app(ledger: Ledger, webhooks: Webhooks, stop: threading.Event) -> Flask:
    """Return the provider as a WSGI app; hanging requests end when ``stop`` is set."""
    app, faults = Flask("psp"), Faults()

    def hang() -> Response:
        stop.wait(faults.rates.timeout_seconds)
        return _answer(Answer(HTTPStatus.GATEWAY_TIMEOUT, {"detail": "TIMEOUT"}))

    def serve(schema: Schema, handle: Any) -> Response:
        key, body = _key(), schema.load(_body())
        plan = faults.plan(key, body.get("payment_method"))
        stop.wait(faults.rates.latency_ms / 1000)
        if plan.error or stop.is_set():
            return _answer(Answer(HTTPStatus.SERVICE_UNAVAILABLE, {"detail": "UNAVAILABLE"}))
        if plan.hang_before:
            return hang()
        answer = handle(key, body, plan)
        return hang() if plan.hang_after else _answer(answer)

    @app.post("/charge")
    def charge() -> Response:
        return serve(_ChargeSchema(), lambda key, body, plan: ledger.charge(key, body, decline=plan.decline))

    @app.post("/refund")
    def refund() -> Response:
        return serve(_RefundSchema(), lambda key, body, _plan: ledger.refund(key, body))

    @app.post("/reverse")
    def reverse() -> Response:
        """Let the customer's bank take a charge back."""
        charge = _ReverseSchema().load(_body())
        answer = ledger.reverse(charge["transaction_id"])
        if answer.status == HTTPStatus.OK:
            webhooks.send("payment.reversed", charge)
        return _answer(answer)

    @app.get("/charges/<path:key>")
    def lookup(key: str) -> Any:
        known = ledger.lookup(key)
        if known is None:
            return _answer(Answer(HTTPStatus.NOT_FOUND, {"detail": "NOT_FOUND", "requests": faults.requests(key)}))
        return {**known, "requests": faults.requests(key)}

    @app.get("/ledger")
    def entries() -> Any:
        return ledger.statement(**_PageSchema(unknown=EXCLUDE).load(request.args))

    @app.route("/faults", methods=["GET", "POST", "DELETE"])
    def rates() -> Any:
        if request.method == "POST":
            faults.change(**_FaultsSchema().load(_body()))
        elif request.method == "DELETE":
            faults.set()
        return asdict(faults.rates)

    @app.get("/health")
    def health() -> Any:
        return {"ok": True}

    @app.errorhandler(ValidationError)
    def bad_request(error: ValidationError) -> Response:
        return _answer(Answer(HTTPStatus.BAD_REQUEST, {"detail": "VALIDATION_FAILED", "errors": error.messages}))

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        return _answer(Answer(error.code or 500, {"detail": error.name.upper().replace(" ", "_")}))

    return app


def _key() -> str:
    key = request.headers.get("Idempotency-Key", "")
    if not key:
        raise ValidationError({"Idempotency-Key": ["Missing header."]})
    return key


def _body() -> Any:
    body = request.get_json(silent=True)
    if not isinstance(body, dict):
        raise ValidationError({"body": ["Must be a JSON object."]})
    return body


def _answer(answer: Answer) -> Response:
    response = jsonify(answer.body)
    response.status_code = answer.status
    return response


class _Http11(WSGIRequestHandler):
    # Werkzeug speaks HTTP/1.1 but closes the connection after each answer: it drains what it did not read.
    protocol_version = "HTTP/1.1"

    def log_request(self, *_: Any) -> None:
        """Say nothing: thousands of requests a minute."""


class PspServer:
    """A provider that serves in a thread, from its creation until ``close`` or the end of a ``with`` block."""

    def __init__(self, ledger: Ledger, host: str, port: int) -> None:
        self.ledger, self._stopping = ledger, threading.Event()
        self.webhooks = Webhooks(self._stopping)
        # Bound here because werkzeug's answer to a port that is taken is sys.exit.
        with socket.create_server((host, port), family=select_address_family(host, port), backlog=128) as listener:
            app = create_app(ledger, self.webhooks, self._stopping)
            self._server = make_server(host, port, app, threaded=True, request_handler=_Http11, fd=listener.fileno())
        self._server.daemon_threads = True  # type: ignore[attr-defined]  # a silent connection must not hold us
        self._server.block_on_close = False  # type: ignore[attr-defined]
        self.url = f"http://{host}:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End hanging requests, stop serving, close the ledger. May be called again."""
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self.webhooks.close()
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(ledger: Ledger, host: str = "127.0.0.1", port: int = 0) -> PspServer:
    """Serve in a thread; port 0 takes a free one. Raises OSError when the port cannot be had."""
    return PspServer(ledger, host, port)


def main() -> int:
    """Serve on the port of ``PSP_URL`` until SIGTERM or SIGINT."""
    try:
        settings = get_settings()
        options = _options(settings)
        ledger = Ledger(options.ledger)
    except ConfigurationError as error:
        return _refuse(str(error))
    except (OSError, sqlite3.Error) as error:
        return _refuse(f"--ledger: cannot open {options.ledger}: {error}. Name a file that can be written.")
    stop = threading.Event()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        with serve(ledger, options.host, options.port) as psp:
            psp.webhooks.send_to(settings.psp_webhook_url or "", settings.psp_webhook_secrets)
            stop.wait()
    except OSError as error:
        where = f"{options.host}:{options.port}"
        return _refuse(f"PSP_URL: cannot serve on {where}: {error.strerror}. Free the port or name another.")
    return 0


def _options(settings: Settings) -> argparse.Namespace:
    try:
        url = urlsplit(settings.gateway_url)
        host, port = url.hostname or "", url.port or 80
    except ValueError as error:
        raise ConfigurationError(f"PSP_URL: {error}. Correct the variable and start again.") from None
    parser = argparse.ArgumentParser(prog="python -m simulators.psp", description=__doc__)
    parser.add_argument("--host", default=host)
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument("--ledger", type=Path, default=settings.var_dir / "psp.db")
    return parser.parse_args()


def _refuse(reason: str) -> int:
    sys.stderr.write(f"psp: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
