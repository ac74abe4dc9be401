"""The simulated provider tells of a reversal: signed, in the background, and again until it is heard."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import urllib3
from standardwebhooks import Webhook

from simulators import webhooks
from simulators.ledger import Ledger
from simulators.psp import PspServer, serve
from simulators.webhooks import new_secret
from tests.support import wait_until

SECRETS = (new_secret(), new_secret())
BODY = {"amount_cents": 500, "currency": "EUR", "payment_method": "tok_ok"}


class Receiver:
    """Keeps what it is sent, and answers ``answers`` one after the other, then 202; with ``silent`` set, nothing."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.speaks = threading.Event()
        self.speaks.set()

    def take(self, headers: dict[str, str], body: bytes) -> int:
        """Take a message."""
        self.speaks.wait(10)
        self.got.append((headers, body))
        return self.answers.pop(0) if self.answers else HTTPStatus.ACCEPTED


@contextmanager
def serving(receiver: Receiver) -> Iterator[str]:
    """Serve a receiver on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(receiver.take(dict(self.headers), body))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def receiver() -> Receiver:
    """A receiver that takes everything."""
    return Receiver()


@pytest.fixture
def psp(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[PspServer]:
    """A provider that tells the receiver, with short pauses."""
    monkeypatch.setattr(webhooks, "_PAUSES", (0.05, 0.05))
    with serving(receiver) as url, serve(Ledger()) as psp:
        psp.webhooks.send_to(url, SECRETS)
        yield psp


def charged(psp: PspServer) -> str:
    """Charge; return the transaction."""
    return str(psp.ledger.charge("key", BODY, decline=None).body["transaction_id"])


def reverse(psp: PspServer, transaction_id: str) -> int:
    """Have a charge reversed; return the answer's status."""
    body = {"transaction_id": transaction_id}
    return int(urllib3.request("POST", f"{psp.url}/reverse", json=body, timeout=10, retries=False).status)


def test_a_reversal_is_told_with_a_signature(psp: PspServer, receiver: Receiver) -> None:
    """Signed with each of the secrets, while one is replaced by the other."""
    transaction_id = charged(psp)
    assert reverse(psp, transaction_id) == HTTPStatus.OK
    ((headers, body),) = wait_until(lambda: receiver.got)
    for secret in SECRETS:
        message = Webhook(secret).verify(body, headers)
        assert (message["type"], message["data"]) == ("payment.reversed", {"transaction_id": transaction_id})


def test_a_receiver_that_fails_is_told_again(psp: PspServer, receiver: Receiver) -> None:
    """The same message under the same id, each attempt with a signature that is good."""
    receiver.answers = [503, 500]
    reverse(psp, charged(psp))
    wait_until(lambda: len(receiver.got) == 3)
    assert len({(headers["webhook-id"], body) for headers, body in receiver.got}) == 1
    for headers, body in receiver.got:
        Webhook(SECRETS[0]).verify(body, headers)


def test_after_a_few_attempts_it_gives_up(
    psp: PspServer, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says so; its ledger still tells whoever reads it."""
    receiver.answers = [503] * 10
    reverse(psp, charged(psp))
    said = []
    wait_until(lambda: said.append(capsys.readouterr().err) or "was not taken" in "".join(said))
    assert len(receiver.got) == 3


def test_a_reversal_that_did_not_happen_is_not_told(psp: PspServer, receiver: Receiver) -> None:
    """No such charge, or reversed before: one message for one reversal."""
    transaction_id = charged(psp)
    assert [reverse(psp, each) for each in ("txn_unknown", transaction_id, transaction_id)] == [404, 200, 409]
    wait_until(lambda: receiver.got)
    psp.webhooks._pool.shutdown()  # whatever was to be sent is sent
    assert len(receiver.got) == 1


def test_a_silent_receiver_holds_no_answer(psp: PspServer, receiver: Receiver) -> None:
    """The provider answers at once, whatever its webhooks meet."""
    receiver.speaks.clear()
    try:
        started = time.monotonic()
        assert reverse(psp, charged(psp)) == HTTPStatus.OK
        assert time.monotonic() - started < 2
        assert receiver.got == []
    finally:
        receiver.speaks.set()


def test_what_waits_for_its_next_attempt_does_not_hold_the_end(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that is told to stop gives up what was not taken."""
    monkeypatch.setattr(webhooks, "_PAUSES", (60.0,))
    receiver.answers = [503] * 10
    with serving(receiver) as url:
        with serve(Ledger()) as psp:
            psp.webhooks.send_to(url, SECRETS)
            reverse(psp, charged(psp))
            wait_until(lambda: receiver.got)
            started = time.monotonic()
        assert time.monotonic() - started < 5
    assert len(receiver.got) == 1
