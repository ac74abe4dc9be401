"""The clients: orders and cancellations over HTTP, sent again when there was no answer.

A request that is sent again may have been an order already, so every attempt carries an amount of its own: whatever
the provider's ledger says about that amount belongs to that one order, whoever lost or doubled which key.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from random import Random
from typing import Any

import urllib3

from stacks.chaos_faults import Strike

_THREADS = 16
_TIMEOUT = 10.0  # seconds for one request
_PAUSE = 0.3  # seconds before a request is sent again
_FIRST_AMOUNT = 1000  # cents
_NEAR_A_FAULT = 0.5  # share of the orders that are sent just before or while something breaks
_AREAS = ("north", "south", "east", "west")
_NOWHERE, _TO_NOWHERE = "atlantis", 0.03  # an area without couriers, and the share of orders that go there


@dataclass(frozen=True, slots=True)
class Errand:
    """An order to be sent, seconds after the start; ``cancel_after`` is seconds after its acceptance."""

    at: float
    customer: str
    area: str
    cancel_after: float | None = None


def plan(
    orders: int, cancelled_share: float, seconds: float, strikes: Sequence[Strike], random: Random
) -> list[Errand]:
    """Decide what is sent when; a cancellation comes before, during or after the work on its order."""
    errands = []
    cancelled = set(random.sample(range(orders), round(orders * cancelled_share)))
    for number in range(orders):
        at = random.uniform(0, seconds)
        if strikes and random.random() < _NEAR_A_FAULT:
            at = max(0.0, random.choice(strikes).at + random.uniform(-2, 1))
        after = random.choice([0.0, random.uniform(0, 3), random.uniform(0, max(3.0, seconds - at))])
        area = _NOWHERE if random.random() < _TO_NOWHERE else random.choice(_AREAS)
        errands.append(Errand(at, f"cus_{number}", area, after if number in cancelled else None))
    return sorted(errands, key=lambda errand: errand.at)


class Load:
    """Sends the errands in threads and remembers what was answered."""

    def __init__(self, url: str, errands: Sequence[Errand], *, started: float, give_up_at: float) -> None:
        self.accepted: dict[str, float] = {}  # order id: seconds until the 202
        self.cancelled: set[str] = set()
        self.refused_cancellations: dict[str, int] = {}
        self.errors: Counter[str] = Counter()
        self.unsent = 0
        self._url, self._started, self._give_up_at = url, started, give_up_at
        self._amounts = itertools.count(_FIRST_AMOUNT)
        self._http = urllib3.PoolManager(maxsize=2 * _THREADS, timeout=_TIMEOUT, retries=False)
        self._stop = threading.Event()
        self._errands = errands
        self._clients = ThreadPoolExecutor(_THREADS, thread_name_prefix="client")
        cancellations = sum(errand.cancel_after is not None for errand in errands)
        self._cancellers = ThreadPoolExecutor(max(1, cancellations), thread_name_prefix="canceller")
        self._futures: list[Future[None]] = []

    def start(self) -> None:
        """Begin to send."""
        self._futures += [self._clients.submit(self._run, errand) for errand in self._errands]

    def finish(self) -> None:
        """Wait for every errand's end; raises what went wrong in one."""
        for future in self._futures:  # grows by the cancellations
            future.result()

    def stop(self) -> None:
        """Send nothing more."""
        self._stop.set()
        self._clients.shutdown(cancel_futures=True)
        self._cancellers.shutdown(cancel_futures=True)

    def _run(self, errand: Errand) -> None:
        self._stop.wait(max(0.0, self._started + errand.at - time.monotonic()))
        order_id = self._place(errand)
        if order_id is None:
            self.unsent += 1
        elif errand.cancel_after is not None:
            moment = time.monotonic() + errand.cancel_after
            self._futures.append(self._cancellers.submit(self._cancel, order_id, moment))

    def _place(self, errand: Errand) -> str | None:
        while not self._is_over():
            begun = time.monotonic()
            status, answer = self._post("/v1/orders", _body(errand, next(self._amounts)))
            if status == HTTPStatus.ACCEPTED:
                self.accepted[answer["id"]] = time.monotonic() - begun
                return str(answer["id"])
            if status == HTTPStatus.BAD_REQUEST:
                raise RuntimeError(f"POST /v1/orders: the API refuses our orders: {answer}")
            self._stop.wait(_PAUSE)
        return None

    def _cancel(self, order_id: str, moment: float) -> None:
        self._stop.wait(max(0.0, moment - time.monotonic()))
        while not self._is_over():
            status, _ = self._post(f"/v1/orders/{order_id}/cancel")
            if status == HTTPStatus.ACCEPTED:
                self.cancelled.add(order_id)
                return
            if status and status < HTTPStatus.INTERNAL_SERVER_ERROR:
                self.refused_cancellations[order_id] = status
                return
            self._stop.wait(_PAUSE)

    def _post(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Return the status and the body; status 0 where there was no answer."""
        try:
            response = self._http.request("POST", self._url + path, json=body)
            answer = response.json() if response.status < HTTPStatus.INTERNAL_SERVER_ERROR else None
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            self.errors[type(error).__name__] += 1
            return 0, None
        if response.status >= HTTPStatus.BAD_REQUEST:
            self.errors[f"HTTP {response.status}"] += 1
        return response.status, answer

    def _is_over(self) -> bool:
        return self._stop.is_set() or time.monotonic() > self._give_up_at


def _body(errand: Errand, amount_cents: int) -> dict[str, Any]:
    address = {"line1": "Main St 1", "city": "Berlin", "postal_code": "10115", "country": "DE", "area": errand.area}
    return {
        "customer_id": errand.customer,
        "items": [{"sku": "pizza", "quantity": 2}],
        "amount_cents": amount_cents,
        "currency": "EUR",
        "payment_method": "tok_ok",
        "address": address,
    }
