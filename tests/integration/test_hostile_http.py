"""Whatever is sent to the API as it is run, gunicorn included: an answer that says what is wrong, never a 5xx.

What gunicorn itself refuses (a request that is no HTTP, headers beyond its limits) gets its plain 4xx page and a closed
connection; everything else is a problem document. A card number in any of it reaches no log.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3

from tests.integration.nodes import Fleet, eventually
from tests.support import BODY, new_body

CARD = "4242424242424242"  # passes Luhn, is nobody's
MASK = "9" * 16
LIMIT = 20_000  # bytes
ORDER = "/v1/orders/00000000-0000-4000-8000-000000000000"
JSON = "Content-Type: application/json"


@pytest.fixture(scope="module")
def running(fleet: Fleet) -> Iterator[Fleet]:
    """The API and whoever works on an order it takes, saying all they can."""
    with fleet.running("api", "payments", "recorder", API_MAX_BYTES=str(LIMIT), LOG_LEVEL="DEBUG"):
        yield fleet


def send(fleet: Fleet, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Send a request as it is written, byte by byte; return the status, the headers and the body of the answer."""
    address = urlsplit(fleet.api_url)
    lines = [*head.split("\n"), "Host: localhost", "Connection: close", "", ""]
    with socket.create_connection((address.hostname, address.port), timeout=15) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was read to its end
            connection.sendall("\r\n".join(lines).encode("latin-1") + body)
        received = b""
        while chunk := receive(connection):
            received += chunk
    first, _, rest = received.partition(b"\r\n")
    fields, _, content = rest.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in fields.decode("latin-1").split("\r\n"))
    return int(first.split()[1]), {name.lower(): value for name, value in headers.items()}, content


def receive(connection: socket.socket) -> bytes:
    """What has come; nothing at the end, however it ends."""
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def chunked(body: bytes) -> bytes:
    """A body in one chunk."""
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


def sized(body: bytes) -> str:
    """The header that says how long a body is."""
    return f"Content-Length: {len(body)}"


GOOD, LARGE = json.dumps(BODY).encode(), json.dumps(BODY).ljust(LIMIT + 1).encode()


@pytest.mark.parametrize(
    ("head", "body", "status", "detail"),
    [
        ("GET /nowhere HTTP/1.1", b"", 404, "NOT_FOUND"),
        ("GET /v1/orders/x HTTP/1.1", b"", 404, "NOT_FOUND"),
        (f"GET {ORDER} HTTP/1.1", b"", 404, "NOT_FOUND"),
        (f"POST {ORDER}/cancel HTTP/1.1", b"", 404, "NOT_FOUND"),
        ("DELETE /v1/orders HTTP/1.1", b"", 405, "METHOD_NOT_ALLOWED"),
        (f"PATCH {ORDER} HTTP/1.1", b"", 405, "METHOD_NOT_ALLOWED"),
        ("BREW /v1/orders HTTP/1.1", b"", 405, "METHOD_NOT_ALLOWED"),
        ("GET /v1/orders HTTP/1.1\nAccept: text/html", b"", 406, "NOT_ACCEPTABLE"),
        (f"POST /v1/orders HTTP/1.1\n{JSON}\n{sized(LARGE)}", LARGE, 413, "BODY_TOO_LARGE"),
        (f"POST /v1/orders HTTP/1.1\n{JSON}\nTransfer-Encoding: chunked", chunked(LARGE), 413, "BODY_TOO_LARGE"),
        (f"POST /api/orders/ HTTP/1.1\n{JSON}\nTransfer-Encoding: chunked", chunked(LARGE), 413, "BODY_TOO_LARGE"),
        ("POST /v1/webhooks/payments HTTP/1.1\nTransfer-Encoding: chunked", chunked(LARGE), 413, "BODY_TOO_LARGE"),
        (f"POST /v1/orders HTTP/1.1\nContent-Type: text/xml\n{sized(GOOD)}", GOOD, 415, "UNSUPPORTED_MEDIA_TYPE"),
        (f"POST /v1/orders HTTP/1.1\n{JSON}\n{sized(b'{')}", b"{", 400, "VALIDATION_FAILED"),
        ("GET /v1/orders?status=%00 HTTP/1.1", b"", 400, "VALIDATION_FAILED"),
        ("GET /v1/orders?after=%ff%fe HTTP/1.1", b"", 400, "VALIDATION_FAILED"),
        ("GET /v1/orders?%ff=%c3%28 HTTP/1.1", b"", 400, "VALIDATION_FAILED"),
        ("GET /v1/orders?" + "a=1&" * 900 + " HTTP/1.1", b"", 400, "VALIDATION_FAILED"),
        ("GET /v1/orders/%00 HTTP/1.1", b"", 404, "NOT_FOUND"),
        ("GET /v1/orders/%ff%fe%c3%28 HTTP/1.1", b"", 404, "NOT_FOUND"),
        ("GET /v1/orders/%2e%2e%2f%2e%2e HTTP/1.1", b"", 404, "NOT_FOUND"),
        (f"GET {ORDER}?expand=%ed%a0%80 HTTP/1.1", b"", 400, "VALIDATION_FAILED"),
        (f"POST /v1/orders HTTP/1.1\n{JSON}\nIdempotency-Key: a b\n{sized(GOOD)}", GOOD, 400, "VALIDATION_FAILED"),
        (f"POST /v1/orders HTTP/1.1\n{JSON}\nIdempotency-Key: \xff\n{sized(GOOD)}", GOOD, 400, "VALIDATION_FAILED"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(running: Fleet, head: str, body: bytes, status: int, detail: str) -> None:
    """A problem document with its code; 405 says what is allowed, 400 names what is wrong."""
    found, headers, content = send(running, head, body)
    assert (found, headers["content-type"]) == (status, "application/problem+json"), content
    problem = json.loads(content)
    assert (problem["status"], problem["detail"]) == (status, detail)
    assert bool(problem.get("errors")) == (status == 400)
    assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize("length", ["Transfer-Encoding: chunked", f"Content-Length: {LIMIT}"])
def test_a_body_may_be_as_large_as_the_limit(running: Fleet, length: str) -> None:
    """Not a byte more: that is what the others are."""
    body = LARGE[:-1]
    sent = chunked(body) if "chunked" in length else body
    assert send(running, f"POST /v1/orders HTTP/1.1\n{JSON}\n{length}", sent)[0] == 202


@pytest.mark.parametrize(
    "head",
    [
        "GET /v1/orders?" + "a" * 10_000 + " HTTP/1.1",
        "GET /v1/orders HTTP/1.1\nX-Long: " + "a" * 100_000,
        "GET /v1/orders HTTP/1.1\n" + "\n".join(f"X-{number}: 1" for number in range(200)),
        f"POST /v1/orders HTTP/1.1\n{JSON}\nContent-Length: -1",
        f"POST /v1/orders HTTP/1.1\n{JSON}\nContent-Length: many",
        f"POST /v1/orders HTTP/1.1\n{JSON}\nContent-Length: 5\nTransfer-Encoding: chunked",
        "GET /v1/orders HTTP/9.9",
        "GET /v1/orders/\xff\xfe HTTP/1.1",
        "GET /v1/orders HTTP/1.1\nBad Header: 1",
        "GET /v1/orders HTTP/1.1\nX: \x00",
        "\x16\x03\x01 hello",
    ],
)
def test_what_is_no_request_is_refused(running: Fleet, head: str) -> None:
    """4xx, from gunicorn or from the API."""
    status, _, content = send(running, head)
    assert 400 <= status < 500, content


@pytest.mark.parametrize("accept", ["*/*", "a" * 5000, ";;;,,,", "\xff", "application/json;q=x"])
@pytest.mark.parametrize("name", ["Accept", "Prefer", "X-Correlation-ID", "Authorization", "Forwarded"])
def test_no_header_breaks_an_answer(running: Fleet, name: str, accept: str) -> None:
    """Whatever it says, the answer is a list or a refusal."""
    status, headers, content = send(running, f"GET /v1/orders HTTP/1.1\n{name}: {accept}")
    assert status in (200, 403, 406), content
    assert headers["content-type"] in ("application/json", "application/problem+json")


def test_a_request_that_breaks_off_harms_nobody(running: Fleet) -> None:
    """Half a body, then nothing: the next one is served."""
    address = urlsplit(running.api_url)
    for _ in range(20):
        with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
            connection.sendall(
                f"POST /v1/orders HTTP/1.1\r\nHost: x\r\n{JSON}\r\n{sized(GOOD)}\r\n\r\n".encode() + GOOD[:9]
            )
    assert send(running, "GET /v1/orders HTTP/1.1")[0] == 200


CARRIERS: list[tuple[str, Any]] = [
    (f"POST /v1/orders HTTP/1.1\n{JSON}", new_body(customer_id=CARD)),
    (f"POST /v1/orders HTTP/1.1\n{JSON}", new_body(note={"deep": [int(CARD)]})),
    (f"POST /v1/orders HTTP/1.1\n{JSON}", {**BODY, CARD: 1}),
    (f"POST /api/orders/ HTTP/1.1\n{JSON}", {**BODY, CARD: 1}),
    (f"POST /v1/orders HTTP/1.1\n{JSON}", f'{{"customer_id": "{CARD}'),
    (f"POST /v1/orders HTTP/1.1\nContent-Type: text/plain; name={CARD}", CARD),
    (f"POST {ORDER}/cancel HTTP/1.1\n{JSON}", {CARD: CARD}),
    (f"POST /v1/webhooks/payments HTTP/1.1\n{JSON}\nwebhook-id: {CARD}", {"type": CARD}),
    (f"GET /v1/orders?status={CARD}&{CARD}=1 HTTP/1.1", ""),
    (f"GET /v1/orders/{CARD} HTTP/1.1", ""),
    (f"GET /v1/orders HTTP/1.1\nAccept: {CARD}", ""),
]


@pytest.mark.parametrize(("head", "content"), CARRIERS)
def test_an_answer_does_not_quote_a_card_number(running: Fleet, head: str, content: Any) -> None:
    """Refused, in whatever part of the request it is."""
    body = (content if isinstance(content, str) else json.dumps(content)).encode()
    status, headers, answer = send(running, f"{head}\n{sized(body)}", body)
    assert (400 <= status < 500, CARD in f"{headers}{answer.decode()}") == (True, False)
    assert headers["content-type"] == "application/problem+json"


def test_no_process_logs_a_card_number(running: Fleet) -> None:
    """Neither of a request that was refused, nor of an order that was taken with it in a header."""
    for head, content in CARRIERS:
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        send(running, f"{head}\n{sized(body)}", body)
    for broken in (f"GET /?{CARD} {CARD} HTTP/1.1", f"GET / HTTP/1.1\nBad {CARD}: 1", f"{CARD}"):
        send(running, broken)
    headers = {"X-Correlation-ID": f"c-{CARD}", "Idempotency-Key": CARD, "Authorization": f"Bearer {CARD}"}
    placed = urllib3.request("POST", f"{running.api_url}/v1/orders?{CARD}", json=BODY, headers=headers, retries=False)
    assert placed.status == 202, placed.data
    assert CARD not in f"{placed.headers}{placed.data.decode()}"
    url = f"{running.api_url}/v1/orders/{placed.json()['id']}"

    def paid() -> bool:
        return bool(urllib3.request("GET", url, retries=False).json()["status"] == "PAID")

    eventually(paid, "the order is paid")
    logs = {path.name: path.read_text() for path in (running.stack.folder / "log").glob("*.log")}
    assert {"api.log", "payments.log", "recorder.log"} <= logs.keys()
    assert [name for name, text in logs.items() if CARD in text] == []
    # gunicorn did log what it could not read, and the order's way is there to be seen
    assert MASK in logs["api.log"]
    assert placed.json()["correlation_id"] in logs["payments.log"]
