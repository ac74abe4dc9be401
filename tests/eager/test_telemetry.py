"""What the outside sees of an order's way: ids everywhere, never a token, an address or a body."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from shared.messaging.app import _mask_arguments
from shared.telemetry.errors import configure_error_reports
from tests.eager.conftest import Saga
from tests.support import json_logs, new_body, new_waybill

SECRETS = {
    "payment_method": "tok_s3cret",
    "customer_id": "cus_s3cret",
    "address": {"line1": "Secret St 1", "city": "Nowhere", "postal_code": "99s3c", "country": "DE", "area": "north"},
    "items": [{"sku": "s3cret_sku", "quantity": 2}],
}
HEADERS = {"X-Correlation-ID": "corr-1", "Authorization": "Bearer s3cret", "Cookie": "session=s3cret"}
QUERY = "token=s3cret"
HIDDEN = ("s3cret", "Secret St", "Nowhere", "99s3c")


class Kept(Transport):
    """A transport that keeps what would have been sent."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        """Keep the errors."""
        if event := envelope.get_event():
            self.events.append(event)


@pytest.fixture
def reports(saga: Saga) -> Iterator[list[Any]]:
    """The error reports of this test; afterwards Sentry is as good as never started."""
    transport = Kept()
    configure_error_reports(saga.use(sentry_dsn="https://key@sentry.invalid/1"), "test", transport=transport)
    yield transport.events
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


def hides(text: str) -> bool:
    """Say whether nothing of an order's body is in a text."""
    return not any(secret in text for secret in HIDDEN)


@pytest.mark.parametrize(
    "changes",
    [{}, {"payment_method": "tok_declined"}, {"address__area": "atlantis"}],
)
def test_no_log_line_of_a_saga_holds_personal_data(saga: Saga, changes: dict[str, str]) -> None:
    """A whole way, fulfilled or undone, at the most talkative level; every line of it names its order."""
    with json_logs("DEBUG") as lines:
        body = {**new_body(), **SECRETS}
        for path, value in changes.items():
            target = body["address"] if "__" in path else body
            target[path.split("__")[-1]] = value
        order_id = saga.client.post("/v1/orders", json=body, headers={"X-Correlation-ID": "corr-7"}).json["id"]
        saga.drain()
        found = lines()
    assert hides(json.dumps(found))
    steps = [line for line in found if line["event"] in ("step_done", "step_declined")]
    assert len(steps) >= 3
    assert {(line["order_id"], line["correlation_id"]) for line in steps} == {(order_id, "corr-7")}
    assert all(line["task"] and line["timestamp"] and line["process"] == "test" for line in steps)


def test_no_log_line_of_a_failing_saga_holds_personal_data(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is logged with its traceback, without the locals of its frames."""

    def bug(*_: Any) -> None:
        raise KeyError("charge")

    monkeypatch.setattr(saga.gateway, "charge", bug)
    with json_logs("DEBUG") as lines:
        saga.client.post("/v1/orders", json={**new_body(), **SECRETS})
        saga.app.tasks["payments.charge"].apply_async(({**new_waybill(**SECRETS).to_dict(), "amount_cents": "s3cret"},))
        saga.drain()
        found = lines()
    assert hides(json.dumps(found))
    events = {line["event"] for line in found}
    assert {"step_parked", "message_malformed"} <= events
    assert any("KeyError" in line.get("exception", "") for line in found if line["event"] == "step_parked")


def test_arguments_are_masked_when_a_task_is_published(saga: Saga) -> None:
    """Flower, task events and Celery's logs show ``argsrepr``: the order id."""
    saga.app.conf.task_always_eager = False
    waybill = new_waybill(**SECRETS)
    saga.app.send_task("payments.charge", args=[waybill.to_dict()])
    (message,) = saga.take("payments")
    assert message.headers["argsrepr"] == f"({waybill.order_id})"
    assert message.headers["kwargsrepr"] == "{}"
    assert hides(json.dumps({name: str(value) for name, value in message.headers.items()}))


@pytest.mark.parametrize(
    ("args", "shown"), [((), "(-)"), (({},), "(?)"), (("s3cret",), "(-)"), (([1],), "(-)"), ((None,), "(-)")]
)
def test_whatever_the_arguments_are_they_are_masked(args: tuple[Any, ...], shown: str) -> None:
    """Also those of tasks without a waybill."""
    headers: dict[str, Any] = {}
    _mask_arguments(headers=headers, body=(args, {"kwarg": "s3cret"}, {}))
    assert headers == {"argsrepr": shown, "kwargsrepr": "{}"}


def test_a_step_shows_its_name(saga: Saga) -> None:
    """``repr`` of a task holds no message."""
    assert "payments.charge" in repr(saga.app.tasks["payments.charge"])


def _break_step(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str | None]:
    def bug(*_: Any) -> None:
        waybill = new_waybill(**SECRETS)  # a local that must not travel
        raise RuntimeError(f"no such thing\n{waybill.payment_method}")

    monkeypatch.setattr(saga.gateway, "charge", bug)
    saga.app.tasks["payments.charge"].apply_async((new_waybill(**SECRETS, order_id=ORDER).to_dict(),))
    return ORDER, "payments.charge"


def _break_request(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, str | None]:
    def bug(details: dict[str, Any], *_: Any, **__: Any) -> None:
        raise RuntimeError(f"no such thing\n{details['payment_method']}")

    monkeypatch.setattr("workers.orders.operations.place", bug)
    answer = saga.client.post(f"/v1/orders?{QUERY}", json={**new_body(), **SECRETS}, headers=HEADERS)
    assert answer.status_code == 500
    return None, None


ORDER = "11111111-1111-4111-8111-111111111111"


@pytest.mark.parametrize("breakage", [_break_step, _break_request])
def test_an_error_report_names_the_order_and_nothing_of_it(
    saga: Saga, reports: list[Any], monkeypatch: pytest.MonkeyPatch, breakage: Callable[..., tuple[Any, Any]]
) -> None:
    """An exception in a step and in a request: tags with the ids, without body, headers, locals or arguments."""
    order_id, task = breakage(saga, monkeypatch)
    assert len(reports) == 1
    (report,) = reports
    tags = report["tags"]
    assert tags["correlation_id"] == "corr-1"
    assert tags.get("order_id") == order_id
    assert tags.get("task") == task
    text = json.dumps(report, default=str)
    assert hides(text)
    assert report["exception"]["values"][-1]["type"] == "RuntimeError"
    assert not any("vars" in frame for each in _exceptions(report) for frame in each["stacktrace"]["frames"])
    assert not {"data", "headers", "cookies", "query_string", "env"} & report.get("request", {}).keys()
    assert "extra" not in report
    assert not report.get("breadcrumbs", {}).get("values")
    assert "celery-job" not in text


def _exceptions(report: Any) -> list[Any]:
    return [each for each in report["exception"]["values"] if each.get("stacktrace")]


def test_a_business_no_and_a_retry_are_no_error_reports(
    saga: Saga, reports: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Declines, waits and refusals are the house's daily life."""
    saga.place(payment_method="tok_declined")
    saga.place(address__area="atlantis")
    saga.client.post("/v1/orders", json={"customer_id": 5})
    saga.client.get("/v1/orders/nobody")
    assert reports == []


def test_without_a_dsn_nothing_is_started(saga: Saga) -> None:
    """Error reports are opt-in."""
    configure_error_reports(saga.use(sentry_dsn=None), "test")
    assert not sentry_sdk.get_client().is_active()
