"""The clients of the fleet in containers: orders over HTTP, each under a key, and whatever they were answered."""

import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import jwt
import urllib3

_THREADS = 4
_TIMEOUT = 20.0  # seconds
_PAUSE = 0.5  # seconds
_AREAS = ("north", "south", "east", "west", "north", "south", "east", "west", "north", "atlantis")  # nobody goes there
_TOKENS = ("tok_ok", "tok_ok", "tok_ok", "tok_ok", "tok_error_twice", "tok_ok", "tok_declined")
_HOUR = 3600


class Client:
    """Asks the API as one customer; an answer that no client should ever see is kept in ``errors``."""

    def __init__(self, url: str, secret: str, issuer: str) -> None:
        claims = {"sub": "compose-test", "aud": "waybill", "iss": issuer, "exp": int(time.time()) + 2 * _HOUR}
        token = jwt.encode({**claims, "scope": "orders:read orders:write"}, secret)
        self._url = url
        self._http = urllib3.PoolManager(maxsize=2 * _THREADS, timeout=_TIMEOUT, retries=False)
        self._headers = {"Authorization": f"Bearer {token}"}
        self.answers: Counter[str] = Counter()
        self.errors: list[str] = []
        self.door_closed = threading.Event()  # the gateway itself is away: a refused connection is no wonder

    def place(self, number: int) -> str | None:
        """Place an order, and again with the same key while the answer is to try later; return its id."""
        key = str(uuid.uuid4())
        for _ in range(240):
            answer = self._ask("POST", "/v1/orders", json=_body(number), headers={"Idempotency-Key": key})
            if answer is not None and answer.status in (HTTPStatus.ACCEPTED, HTTPStatus.OK, HTTPStatus.CREATED):
                return str(answer.json()["id"])
            time.sleep(_PAUSE)
        return None

    def get(self, path: str) -> Any:
        """Read, and again while the answer is to try later."""
        for _ in range(240):
            answer = self._ask("GET", path)
            if answer is not None and answer.status == HTTPStatus.OK:
                return answer.json()
            time.sleep(_PAUSE)
        raise TimeoutError(f"GET {path}: no answer")

    def orders(self) -> list[dict[str, Any]]:
        """Return every order."""
        path, orders = "/v1/orders?page_size=200", []
        while page := self.get(path):
            orders += page["results"]
            if not page["next"]:
                break
            path = f"/v1/orders?page_size=200&after={page['next']}"
        return orders

    def _ask(self, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse | None:
        headers = {**self._headers, **options.pop("headers", {})}
        try:
            answer = self._http.request(method, self._url + path, headers=headers, **options)
        except urllib3.exceptions.HTTPError as error:
            self.answers[type(error).__name__] += 1
            if not self.door_closed.is_set():
                self.errors.append(f"{method} {path}: {error}")
            return None
        self.answers[f"{method} {answer.status}"] += 1
        later = answer.status == HTTPStatus.SERVICE_UNAVAILABLE and "Retry-After" in answer.headers
        if answer.status >= HTTPStatus.BAD_REQUEST and not later:
            self.errors.append(f"{method} {path}: {answer.status} {answer.data[:200]!r}")
        return answer


class Load:
    """Places orders evenly until told to stop, from several threads."""

    def __init__(self, client: Client, per_second: float) -> None:
        self.accepted: list[str] = []
        self.lost = 0
        self._client, self._pause = client, _THREADS / per_second
        self._numbers = iter(range(1_000_000))
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="client")
        self._threads = [self._pool.submit(self._run) for _ in range(_THREADS)]

    def finish(self) -> None:
        """Stop, and raise what went wrong."""
        self._stop.set()
        for thread in self._threads:
            thread.result()
        self._pool.shutdown()

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            if order_id := self._client.place(next(self._numbers)):
                self.accepted.append(order_id)
            else:
                self.lost += 1


def _body(number: int) -> dict[str, Any]:
    area = _AREAS[number % len(_AREAS)]
    address = {"line1": "Main St 1", "city": "Berlin", "postal_code": "10115", "country": "DE", "area": area}
    return {
        "customer_id": f"cus_{number}",
        "items": [{"sku": "pizza", "quantity": 2}],
        "amount_cents": 1000 + number,
        "currency": "EUR",
        "payment_method": _TOKENS[number % len(_TOKENS)],
        "address": address,
    }
