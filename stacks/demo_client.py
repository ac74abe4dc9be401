"""What the demo asks over HTTP: the API for the orders, the payment provider for its ledger."""

from http import HTTPStatus
from typing import Any

import urllib3

from shared.errors import WaybillError

_TIMEOUT = 10.0  # seconds


class DemoClient:
    """A client of a running stack. Raises ``WaybillError`` for an answer that is not the expected one."""

    def __init__(self, api_url: str, psp_url: str) -> None:
        self._orders_url = f"{api_url}/v1/orders"
        self._psp_url = psp_url
        self._http = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)

    def place(self, body: dict[str, Any], correlation_id: str) -> str:
        """Place an order and return its id."""
        headers = {"X-Correlation-ID": correlation_id}
        order = self._ask("POST", self._orders_url, HTTPStatus.ACCEPTED, json=body, headers=headers)
        return str(order["id"])

    def orders(self, count: int) -> list[dict[str, Any]]:
        """Return the newest orders, the newest first; at most 200, in one request."""
        page = self._ask("GET", f"{self._orders_url}?page_size={max(count, 1)}")
        return list(page["results"])

    def events(self, order_id: str) -> list[dict[str, Any]]:
        """Return an order's timeline, oldest first."""
        return list(self._ask("GET", f"{self._orders_url}/{order_id}/events")["results"])

    def ledger(self) -> list[dict[str, Any]]:
        """Return every charge and refund that the provider made."""
        return list(self._ask("GET", f"{self._psp_url}/ledger")["entries"])

    def charge(self, key: str, amount_cents: int) -> None:
        """Charge at the provider, past every order."""
        body = {"amount_cents": amount_cents, "currency": "EUR", "payment_method": "tok_ok"}
        self._ask("POST", f"{self._psp_url}/charge", json=body, headers={"Idempotency-Key": key})

    def _ask(self, method: str, url: str, expected: HTTPStatus = HTTPStatus.OK, **options: Any) -> Any:
        try:
            response = self._http.request(method, url, **options)
        except urllib3.exceptions.HTTPError as error:
            raise WaybillError(f"{method} {url}: no answer ({type(error).__name__}); see the log") from error
        if response.status != expected:
            raise WaybillError(f"{method} {url}: HTTP {response.status} instead of {expected}; see the log")
        return response.json()
