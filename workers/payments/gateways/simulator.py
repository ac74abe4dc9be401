"""The adapter to the PSP simulator (``simulators/psp.py``), an HTTP provider with idempotency keys."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import urllib3

from shared.errors import Transient
from workers.payments.gateways import Charge, LedgerEntry


class SimulatorGateway:
    """A payment provider over HTTP. ``timeout`` is seconds, for connecting and for each answer."""

    def __init__(self, url: str, timeout: float, connections: int) -> None:
        self._url = url.rstrip("/")
        # Retries are the step's: one here would hide from it that the outcome became unknown.
        self._http = urllib3.PoolManager(
            maxsize=connections, block=True, timeout=urllib3.Timeout(timeout), retries=False
        )

    def charge(self, operation_key: str, amount_cents: int, currency: str, payment_method: str) -> Charge:
        """Capture an amount in minor units."""
        body = {"amount_cents": amount_cents, "currency": currency, "payment_method": payment_method}
        status, answer = self._call("POST", "/charge", key=operation_key, json=body)
        if status == HTTPStatus.PAYMENT_REQUIRED:
            return Charge(None, failure_code=answer["detail"])
        _expect(HTTPStatus.OK, status, answer)
        return Charge(answer["transaction_id"])

    def refund(self, operation_key: str, transaction_id: str) -> None:
        """Give back the whole charge."""
        status, answer = self._call("POST", "/refund", key=operation_key, json={"transaction_id": transaction_id})
        _expect(HTTPStatus.OK, status, answer)

    def lookup(self, operation_key: str) -> Charge | None:
        """Ask what became of a charge."""
        status, answer = self._call("GET", f"/charges/{operation_key}")
        if status == HTTPStatus.NOT_FOUND:
            return None
        _expect(HTTPStatus.OK, status, answer)
        if answer["status"] == "captured":
            return Charge(answer["transaction_id"])
        return Charge(None, failure_code="PAYMENT_FAILED")

    def entries(self, after: int, limit: int) -> Sequence[LedgerEntry]:
        """Read the ledger."""
        status, answer = self._call("GET", f"/ledger?after={after}&limit={limit}")
        _expect(HTTPStatus.OK, status, answer)
        return [
            LedgerEntry(line["seq"], line["kind"], line["idempotency_key"], line["transaction_id"])
            for line in answer["entries"]
        ]

    def _call(self, method: str, path: str, key: str | None = None, json: Any = None) -> tuple[int, Any]:
        headers = {"Idempotency-Key": key} if key else {}
        what = f"{method} {path.split('/')[1].partition('?')[0]}"
        try:
            response = self._http.request(method, self._url + path, headers=headers, json=json)
            if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR or response.status == HTTPStatus.TOO_MANY_REQUESTS:
                raise Transient(f"payment provider: HTTP {response.status} from {what}")
            return response.status, response.json()
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise Transient(f"payment provider: {type(error).__name__} from {what}") from error


def _expect(expected: HTTPStatus, status: int, answer: Any) -> None:
    if status != expected:
        raise RuntimeError(f"payment provider: unexpected HTTP {status}: {answer.get('detail')}")
