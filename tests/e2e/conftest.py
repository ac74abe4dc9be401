"""Both stacks, each started once: the API's and the payment provider's addresses are all a test needs."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import urllib3

from stacks.local import KEYS, ROOT, UNLIMITED, LocalStack
from stacks.processes import LocalProcess, free_port, poll, wait_for
from tests.support import new_body

READY = 60  # seconds
TIMEOUT = 60  # seconds in which an order has to get where it goes
# So that a fault costs a test seconds, not minutes.
IMPATIENT = {**UNLIMITED, "GATEWAY_TIMEOUT": "1", "STEP_BACKOFF_MAX": "2", "LOG_FORMAT": "json"}


class Client:
    """A customer: HTTP to the API, and a look at the payment provider's ledger."""

    def __init__(self, api_url: str, psp_url: str) -> None:
        self.api_url = api_url
        self.psp_url = psp_url
        self._http = urllib3.PoolManager(timeout=10, retries=False)

    def request(self, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
        """Ask the API."""
        return self._http.request(method, urljoin(self.api_url, path), **options)

    def get(self, path: str) -> Any:
        """What the API answers with 200."""
        answer = self.request("GET", path)
        assert answer.status == 200, answer.data
        return answer.json()

    def place(self, headers: dict[str, str] | None = None, **changes: Any) -> str:
        """Place an order; return its path."""
        answer = self.request("POST", "/v1/orders", json=new_body(**changes), headers=headers)
        assert answer.status == 202, answer.data
        return str(answer.headers["Location"])

    def follow(self, path: str, status: str) -> dict[str, Any]:
        """The order once it has reached a status and the customer was told."""
        assert poll(lambda: self.get(path)["status"] == status, TIMEOUT), (self.get(path), self.events(path))
        assert poll(lambda: "customer.notified" in self.types(path), TIMEOUT), self.types(path)
        return dict(self.get(path))

    def events(self, path: str) -> list[dict[str, Any]]:
        """The order's timeline."""
        return list(self.get(f"{path}/events")["results"])

    def types(self, path: str) -> list[str]:
        """The types of the order's events, oldest first."""
        return [event["type"] for event in self.events(path)]

    def entries(self, token: str) -> list[dict[str, Any]]:
        """What the provider's ledger says about a payment method."""
        answer = self._http.request("GET", f"{self.psp_url}/ledger")
        return [entry for entry in answer.json()["entries"] if entry["payment_method"] == token]

    def net(self, token: str) -> int:
        """Cents that a payment method paid and did not get back."""
        signs = {"charge": 1, "refund": -1}
        return sum(signs[entry["kind"]] * entry["amount_cents"] for entry in self.entries(token))

    def faults(self, **rates: float) -> None:
        """Set the provider's faults."""
        assert self._http.request("POST", f"{self.psp_url}/faults", json=rates).status == 200

    def close(self) -> None:
        """Close every connection."""
        self._http.clear()


@pytest.fixture(params=["embedded", "real"], scope="session")
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A customer of each stack in turn."""
    stacks = {"embedded": embedded, "real": real}
    with stacks[request.param](tmp_path_factory.mktemp(request.param)) as client:
        yield client


@contextmanager
def embedded(folder: Path) -> Iterator[Client]:
    """The embedded stack in a process of its own, the provider in another."""
    with psp(folder) as psp_url, embedded_process(folder, psp_url) as process, started(process, psp_url) as client:
        yield client


@contextmanager
def real(folder: Path) -> Iterator[Client]:
    """Real servers and every process of the Procfile but Flower."""
    stack = LocalStack(folder, durable=False, extra=IMPATIENT)
    try:
        stack.start_servers()
        stack.prepare_databases()
        stack.start_app([name for name in stack.processes if name != "flower"])
        client = Client(stack.api_url, stack.psp_url)
        yield client
        client.close()
    finally:
        stack.stop()


@contextmanager
def psp(folder: Path) -> Iterator[str]:
    """The payment provider, its ledger surviving whatever happens to the fleet."""
    url = f"http://127.0.0.1:{free_port()}"
    process = _process("psp", ["simulators.psp"], folder, PSP_URL=url)
    process.start()
    try:
        wait_for(lambda: _answers(f"{url}/health"), READY, "the provider is not ready", process)
        yield url
    finally:
        process.kill()


@contextmanager
def embedded_process(folder: Path, psp_url: str) -> Iterator[LocalProcess]:
    """The embedded stack, not started yet, and killed at the end."""
    process = _process("embedded", ["stacks.embedded"], folder, PORT=str(free_port()), PSP_URL=psp_url, **IMPATIENT)
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def started(process: LocalProcess, psp_url: str) -> Iterator[Client]:
    """Start the embedded stack and wait until it serves."""
    assert process.environment
    url = f"http://127.0.0.1:{process.environment['PORT']}"
    process.start()
    wait_for(lambda: _answers(f"{url}/health/"), READY, "the embedded stack is not ready", process)
    client = Client(url, psp_url)
    yield client
    client.close()


def new_token() -> str:
    """A payment method of its own, so that its money can be told apart."""
    return f"tok_{uuid.uuid4().hex}"


def _process(name: str, module: list[str], folder: Path, **variables: str) -> LocalProcess:
    callers = {name: value for name, value in os.environ.items() if name not in KEYS}
    environment = {**callers, "VAR_DIR": str(folder), **variables}
    command = [sys.executable, "-m", *module]
    return LocalProcess(name, command, log=folder / f"{name}.log", environment=environment, cwd=ROOT, tied=True)


def _answers(url: str) -> bool:
    try:
        return bool(urllib3.request("GET", url, timeout=2, retries=False).status == 200)
    except (urllib3.exceptions.HTTPError, json.JSONDecodeError):
        return False
