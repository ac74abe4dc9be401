"""The payment provider over real HTTP: its answers, its faults, and its ledger after a kill."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.ledger import Ledger
from simulators.psp import PspServer, serve
from stacks.processes import free_port, poll

ROOT = Path(__file__).resolve().parents[2]
BODY = {"amount_cents": 500, "currency": "EUR", "payment_method": "tok_ok"}
HANG = 0.2  # seconds that a client waits for an answer that hangs
DEFAULTS = {
    "error_rate": 0.0, "timeout_before_rate": 0.0, "timeout_after_rate": 0.0, "decline_rate": 0.0,
    "latency_ms": 0, "timeout_seconds": 30.0, "seed": 0,
}  # fmt: skip


class Client:
    """Speaks to a provider; an answer is its status and its body."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = urllib3.PoolManager(retries=False, timeout=10)

    def call(self, method: str, path: str, key: str | None = None, **request: Any) -> tuple[int, Any]:
        """Send a request and wait for its answer."""
        headers = {"Idempotency-Key": key} if key else {}
        response = self._http.request(method, self.url + path, headers=headers, **request)
        return response.status, response.json()

    def charge(self, key: str, token: str = "tok_ok", **request: Any) -> tuple[int, Any]:
        """Charge 500 cents."""
        return self.call("POST", "/charge", key, json={**BODY, "payment_method": token}, **request)

    def lookup(self, key: str) -> tuple[int, Any]:
        """Ask what became of a key."""
        return self.call("GET", f"/charges/{key}")

    def faults(self, **rates: Any) -> tuple[int, Any]:
        """Set rates."""
        return self.call("POST", "/faults", json=rates)

    def entries(self) -> list[dict[str, Any]]:
        """Read the ledger."""
        return list(self.call("GET", "/ledger")[1]["entries"])

    def close(self) -> None:
        """Close what is open."""
        self._http.clear()


@pytest.fixture(scope="module")
def server() -> Iterator[PspServer]:
    """One provider for the file."""
    with serve(Ledger()) as running:
        yield running


@pytest.fixture
def client(server: PspServer) -> Iterator[Client]:
    """A client of a provider without faults; each test has its own keys."""
    speaks = Client(server.url)
    yield speaks
    speaks.call("DELETE", "/faults")
    speaks.close()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key that no other test uses."""
    return f"{request.node.name}/1"


def test_a_charge_is_captured_once(client: Client, key: str) -> None:
    """A repeat gets the same answer, another body a conflict, and the key was tried three times."""
    status, answer = client.charge(key)
    assert (status, answer["charged"]) == (200, True)
    assert client.charge(key) == (status, answer)
    assert client.call("POST", "/charge", key, json={**BODY, "amount_cents": 1}) == (
        409, {"detail": "IDEMPOTENCY_CONFLICT"},
    )  # fmt: skip
    found = client.lookup(key)[1]
    assert (found["status"], found["transaction_id"], found["requests"]) == ("captured", answer["transaction_id"], 3)


def test_a_refund_is_given_once(client: Client, key: str) -> None:
    """A repeat gets the same answer; more than was captured and the unknown are refused."""
    body = {"transaction_id": client.charge(key)[1]["transaction_id"]}
    status, answer = client.call("POST", "/refund", f"{key}/refund", json=body)
    assert (status, answer["refunded"], answer["amount_cents"]) == (200, True, 500)
    assert client.call("POST", "/refund", f"{key}/refund", json=body) == (status, answer)
    assert client.call("POST", "/refund", f"{key}/more", json=body) == (409, {"detail": "ALREADY_REFUNDED"})
    assert client.call("POST", "/refund", f"{key}/none", json={"transaction_id": "txn_0"})[0] == 404
    assert client.lookup(key)[1]["refunded_cents"] == 500


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amount_cents": 0}, "amount_cents"),
        ({"amount_cents": -1}, "amount_cents"),
        ({"amount_cents": True}, "amount_cents"),
        ({"amount_cents": 5.0}, "amount_cents"),
        ({"amount_cents": 10**30}, "amount_cents"),
        ({"currency": "eur"}, "currency"),
        ({"currency": "EURO"}, "currency"),
        ({"payment_method": "4111111111111111"}, "payment_method"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_bad_body_is_refused_with_its_field(client: Client, key: str, change: dict[str, Any], field: str) -> None:
    """400 that names the field; the key stays unused."""
    status, answer = client.call("POST", "/charge", key, json={**BODY, **change})
    assert (status, list(answer["errors"])) == (400, [field])
    assert client.lookup(key) == (404, {"detail": "NOT_FOUND", "requests": 0})


def test_a_request_without_key_or_json_is_refused(client: Client, key: str) -> None:
    """400 that names what is missing."""
    assert list(client.call("POST", "/charge", json=BODY)[1]["errors"]) == ["Idempotency-Key"]
    for bad in (b"", b"{", b"[1]", b"null"):
        status, answer = client.call("POST", "/charge", key, body=bad)
        assert (status, list(answer["errors"])) == (400, ["body"])


@pytest.mark.parametrize("query", ["after=x", "after=-1", "limit=0", f"after={10**30}"])
def test_a_bad_page_is_refused(client: Client, query: str) -> None:
    """A slip in a query does not read as an empty, or a whole, ledger."""
    assert client.call("GET", f"/ledger?{query}")[0] == 400


def test_the_ledger_is_read_in_pages(client: Client, key: str) -> None:
    """`after` goes on behind a sequence number."""
    seq = max((entry["seq"] for entry in client.entries()), default=0)
    for number in range(3):
        client.charge(f"{key}{number}")
    page = client.call("GET", f"/ledger?after={seq + 1}&limit=1")[1]
    assert [entry["idempotency_key"] for entry in page["entries"]] == [f"{key}1"]


@pytest.mark.parametrize(
    ("token", "code"), [("tok_declined", "card_declined"), ("tok_insufficient_funds", "insufficient_funds")]
)
def test_a_declining_token_declines(client: Client, key: str, token: str, code: str) -> None:
    """402 with the reason, before any rate."""
    client.faults(error_rate=1)
    assert client.charge(key, token) == (402, {"detail": "PAYMENT_FAILED", "code": code})
    assert client.lookup(key)[1]["status"] == "declined"


def test_an_error_token_errs(client: Client, key: str) -> None:
    """Always, or twice for each key, without moving money."""
    assert [client.charge(key, "tok_error_always")[0] for _ in range(4)] == [503] * 4
    assert client.lookup(key) == (404, {"detail": "NOT_FOUND", "requests": 4})
    assert [client.charge(f"{key}/twice", "tok_error_twice")[0] for _ in range(4)] == [503, 503, 200, 200]


def test_a_timeout_after_the_charge_leaves_it_charged(client: Client, key: str) -> None:
    """The first request hangs, but its money moved; the retry is told so."""
    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        client.charge(key, "tok_timeout_after_charge_once", timeout=HANG)
    found = client.lookup(key)[1]
    assert (found["status"], found["requests"]) == ("captured", 1)
    assert client.charge(key, "tok_timeout_after_charge_once")[1]["transaction_id"] == found["transaction_id"]


def test_rates_of_faults_act(client: Client, key: str) -> None:
    """An error and a timeout before the charge move nothing, for refunds neither."""
    client.faults(error_rate=1)
    assert client.charge(key)[0] == 503
    assert client.call("POST", "/refund", key, json={"transaction_id": "txn_0"})[0] == 503
    client.faults(error_rate=0, timeout_before_rate=1, timeout_seconds=0.01)
    assert client.charge(key)[0] == 504
    assert client.lookup(key)[0] == 404
    client.faults(timeout_before_rate=0, timeout_after_rate=1)
    assert client.charge(key)[0] == 504
    assert client.lookup(key)[1]["status"] == "captured"


def test_latency_is_waited(client: Client, key: str) -> None:
    """At least the milliseconds that were set."""
    client.faults(latency_ms=60)
    start = time.monotonic()
    assert client.charge(key)[0] == 200
    assert time.monotonic() - start >= 0.06


def test_rates_are_set_read_and_reset(client: Client) -> None:
    """Every answer has all of them."""
    assert client.faults(error_rate=0.25, seed=7) == (200, {**DEFAULTS, "error_rate": 0.25, "seed": 7})
    assert client.call("GET", "/faults")[1]["error_rate"] == 0.25
    assert client.call("DELETE", "/faults") == (200, DEFAULTS)


@pytest.mark.parametrize("rates", [{"error_rate": 1.1}, {"latency_ms": -1}, {"timeout_seconds": 1e300}, {"typo": 1}])
def test_a_bad_rate_is_refused_with_its_name(client: Client, rates: dict[str, Any]) -> None:
    """400, and nothing changes."""
    status, answer = client.faults(**rates)
    assert (status, list(answer["errors"])) == (400, list(rates))
    assert client.call("GET", "/faults") == (200, DEFAULTS)


def test_the_same_seed_gives_the_same_errors(client: Client, key: str) -> None:
    """By the order of requests."""
    runs = []
    for run in range(2):
        client.faults(error_rate=0.4, seed=11)
        runs.append([client.charge(f"{key}/{run}/{number}")[0] for number in range(20)])
    assert runs[0] == runs[1]
    assert set(runs[0]) == {200, 503}


def test_declines_hang_on_the_key_and_the_seed_alone() -> None:
    """Two providers decline the same keys, whatever the order of the requests; another seed declines others."""

    def declined(seed: int, numbers: list[int]) -> set[int]:
        with serve(Ledger()) as server:
            client = Client(server.url)
            client.faults(decline_rate=0.5, seed=seed)
            found = {number for number in numbers if client.charge(f"k{number}")[0] == 402}
            client.close()
            return found

    numbers = list(range(20))
    assert declined(3, numbers) == declined(3, numbers[::-1])
    assert declined(4, numbers) not in (set(), set(numbers), declined(3, numbers))


def test_one_key_from_many_connections_is_one_entry(client: Client, key: str) -> None:
    """Eight at once, one transaction."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.charge(key), range(8)))
    assert len({answer["transaction_id"] for _, answer in answers}) == 1
    assert [entry["idempotency_key"] for entry in client.entries()].count(key) == 1


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=12))
def test_concurrent_repeats_never_make_two_entries(keys: list[int]) -> None:
    """Any mix of repeats, four at a time and with errors and slow answers: one entry a key."""
    with serve(Ledger()) as server:
        client = Client(server.url)
        client.faults(error_rate=0.2, timeout_after_rate=0.2, timeout_seconds=0.01, seed=len(keys))
        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(lambda number: client.charge(f"k{number}")[0], keys))
        entries = [entry["idempotency_key"] for entry in client.entries()]
        client.close()
    assert len(entries) == len(set(entries))
    assert set(entries) >= {f"k{number}" for number, status in zip(keys, statuses, strict=True) if status == 200}


def test_a_hanging_request_does_not_hold_the_shutdown(key: str) -> None:
    """`close` ends it at once, and may be called again."""
    server = serve(Ledger())
    client = Client(server.url)
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(client.charge, key, "tok_timeout_after_charge_once")
        assert poll(lambda: client.lookup(key)[0] == 200, 10)
        start = time.monotonic()
        server.close()
        server.close()
        assert hanging.result(timeout=10)[0] == 504
    assert time.monotonic() - start < 5
    client.close()


def test_a_killed_provider_keeps_what_it_answered(tmp_path: Path) -> None:
    """`kill -9` right after an answer, twice, on one ledger: every entry is there, and repeats find it."""
    port, ledger = free_port(), tmp_path / "deep" / "psp.db"
    client = Client(f"http://127.0.0.1:{port}")
    answers: list[tuple[int, Any]] = []
    for number in range(3):
        process = start("--port", str(port), "--ledger", str(ledger))
        try:
            assert poll(lambda: healthy(client), 30)
            if answers:
                assert client.charge(f"k{number - 1}") == answers[-1]
            answers.append(client.charge(f"k{number}"))
        finally:
            process.kill()
            process.communicate()
    client.close()
    kept = Ledger(ledger)
    assert [entry["transaction_id"] for entry in kept.entries()] == [answer["transaction_id"] for _, answer in answers]
    kept.close()


@pytest.mark.parametrize(
    ("psp_url", "ledger", "named"),
    [
        ("http://127.0.0.1:{taken}", "psp.db", "PSP_URL"),
        ("http://127.0.0.1:99999", "psp.db", "PSP_URL"),
        ("nonsense", "psp.db", "PSP_URL"),
        ("http://127.0.0.1:{taken}", "", "--ledger"),
    ],
)
def test_a_mistake_at_the_start_is_one_line(tmp_path: Path, psp_url: str, ledger: str, named: str) -> None:
    """It names what to correct, and shows no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = psp_url.format(taken=taken.getsockname()[1])
        process = start("--ledger", str(tmp_path / ledger), PSP_URL=url)
        try:
            output = process.communicate(timeout=30)[0]
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 1
    assert named in output
    assert len(output.splitlines()) == 1


def test_a_terminated_provider_exits_with_zero(tmp_path: Path) -> None:
    """SIGTERM is how a stack ends it."""
    port = free_port()
    process = start("--port", str(port), "--ledger", str(tmp_path / "psp.db"))
    client = Client(f"http://127.0.0.1:{port}")
    try:
        assert poll(lambda: healthy(client), 30)
        process.terminate()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        assert process.communicate()[0] == ""
        client.close()


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start the provider as a process; its output is one text."""
    return subprocess.Popen(
        [sys.executable, "-m", "simulators.psp", *arguments],
        cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def healthy(client: Client) -> bool:
    """Say whether the provider answers."""
    try:
        return client.call("GET", "/health") == (200, {"ok": True})
    except (urllib3.exceptions.HTTPError, json.JSONDecodeError):
        return False
