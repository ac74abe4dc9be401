"""Every published version of a message is still understood, and what is published now still has that shape.

``golden/`` holds one file per message type and version. A file is never changed; a new version gets a new file.
"""

import json
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.events import EventType, parse_event
from shared.contracts.waybill import parse_waybill
from shared.database import get_database
from shared.deadletters import moves
from shared.deadletters.selection import Selection, find
from shared.deadletters.store import bury
from shared.errors import Transient
from shared.messaging.app import declare_topology
from simulators.webhooks import new_secret, signed
from tests.eager.conftest import Saga
from tests.support import new_body
from workers.orders import operations
from workers.orders.desk import Records
from workers.orders.models import Order
from workers.orders.status import fold

GOLDEN = Path(__file__).parent / "golden"
EVENTS = sorted(GOLDEN.glob("event.*.v*.json"))
WAYBILLS = sorted(GOLDEN.glob("waybill.v*.json"))


def read(path: Path) -> Any:
    """Return a golden message."""
    return json.loads(path.read_text())


def missing(golden: Any, now: Any, path: str = "$") -> list[str]:
    """Return where ``now`` lacks a field of the golden message or has another type there; it may have more."""
    if golden is None or now is None:  # a nullable field: the other message may hold its value
        return []
    if type(golden) is not type(now):
        return [f"{path}: {type(golden).__name__} became {type(now).__name__}"]
    if isinstance(golden, dict):
        absent = [f"{path}.{key}: gone" for key in golden if key not in now]
        return absent + [hit for key in golden if key in now for hit in missing(golden[key], now[key], f"{path}.{key}")]
    if isinstance(golden, list) and golden and now:
        return missing(golden[0], now[0], f"{path}[0]")
    return []


def test_every_event_type_has_its_golden_file() -> None:
    """A new type is published with its file."""
    assert {path.name.split(".v")[0].removeprefix("event.") for path in EVENTS} == set(EventType)


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_every_published_event_is_still_read(path: Path) -> None:
    """Today's parser takes it whole, today's fold takes it, and it is written again as it was."""
    golden = read(path)
    event = parse_event(golden)
    assert (event.id, event.type, event.subject) == (golden["id"], golden["type"], golden["subject"])
    assert (event.correlation_id, dict(event.data)) == (golden["correlationid"], golden["data"])
    assert f"/waybill/{event.source}" == golden["source"]
    assert fold([event])
    assert missing(golden, event.to_cloudevent()) == []


@pytest.mark.parametrize("path", EVENTS, ids=lambda path: path.stem)
def test_an_event_of_a_later_version_is_read(path: Path) -> None:
    """A consumer of today meets a producer of tomorrow: further fields, a further version."""
    golden = read(path)
    later = {**golden, "dataschema": f"urn:waybill:event:{golden['type']}:2", "traceparent": "00-1-2-01"}
    later["data"] = {**golden["data"], "added": {"later": True}}
    assert fold([parse_event(later)]) == fold([parse_event(golden)])


@pytest.mark.parametrize("path", WAYBILLS, ids=lambda path: path.stem)
def test_every_published_waybill_is_still_read(path: Path) -> None:
    """Messages wait in queues and dead letters across releases."""
    golden = read(path)
    assert parse_waybill(golden).to_dict() == golden


@pytest.mark.parametrize("path", WAYBILLS, ids=lambda path: path.stem)
def test_a_new_waybill_has_every_field_of_the_published_ones(path: Path, saga: Saga) -> None:
    """An older worker finds whatever it looks for."""
    _, way = operations.place(new_body(), "corr-1")
    stamped = way.waybill.stamped("payments.charge", {"transaction_id": "txn_1"})
    assert missing(read(path), stamped.to_dict()) == []


@pytest.fixture
def published(saga: Saga, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """One event of each type as it is published today: by an order of each fate."""
    saga.place(payment_method="tok_declined")
    saga.place(address__area="atlantis")
    saga.cancel(saga.place())
    with monkeypatch.context() as patch:
        patch.setattr(saga.gateway, "charge", _unreachable)
        saga.place()
    expired = saga.store()
    with get_database("orders").transaction() as session:
        order = session.get_one(Order, expired.order_id)
        order.created_at = order.due_at = datetime.now(UTC) - timedelta(days=1)
    saga.app.tasks["orders.sweep"].apply_async()
    _handle_dead_letters(saga)
    _tell_by_webhook(saga)
    saga.drain()
    return {event["type"]: event for event in saga.published()}


def _handle_dead_letters(saga: Saga) -> None:
    """Put one back, edit one, drop one, as an operator does."""
    waybill, records = saga.store(), Records()
    declare_topology(saga.app)
    body = json.dumps([[waybill.to_dict()], {}, {"chain": None, "callbacks": None, "errbacks": None, "chord": None}])
    for number in range(3):
        headers = {"id": f"task-{number}", "task": "payments.charge", "retries": 0}
        content = {"content_type": "application/json", "content_encoding": "utf-8"}
        bury(saga.app, "payments", body.encode(), headers, content)
        (found,) = find(saga.app, records, ["payments"], Selection())
        if number == 0:
            list(moves.requeue(saga.app, records, [found.letter]))
        elif number == 1:
            moves.requeue_edited(saga.app, records, found.letter, moves.editable(found.letter))
        else:
            moves.drop(saga.app, records, [found.letter], "a test", moves.new_export(), done=[], cancelled=set())


def _tell_by_webhook(saga: Saga) -> None:
    """Pick an order up, deliver it, and take its payment back."""
    secret, order_id = new_secret(), saga.place()
    transaction_id = saga.order(order_id)["transaction_id"]
    saga.gateway.reverse(transaction_id)
    saga.use(payments_webhook_secrets=(secret,), delivery_webhook_secrets=(secret,))
    for kind, data in (
        ("delivery.picked_up", {"order_id": order_id, "courier": "cou-ada"}),
        ("delivery.delivered", {"order_id": order_id, "courier": "cou-ada"}),
        ("payment.reversed", {"transaction_id": transaction_id}),
    ):
        source = "payments" if kind == EventType.PAYMENT_REVERSED else "delivery"
        body = json.dumps({"type": kind, "timestamp": datetime.now(UTC).isoformat(), "data": data})
        headers = signed([secret], kind, body)
        assert saga.client.post(f"/v1/webhooks/{source}", data=body, headers=headers).status_code == HTTPStatus.ACCEPTED


def _unreachable(*_: Any) -> None:
    raise Transient("payment provider: HTTP 503 from POST charge")


def test_new_events_have_every_field_of_the_published_ones(published: dict[str, Any]) -> None:
    """Fields may be added, never taken away or turned into another type."""
    golden = {name: message for path in EVENTS if (message := read(path)) and (name := message["type"]) in published}
    assert not [hit for name, message in golden.items() for hit in missing(message, published[name], name)]
    assert published.keys() == set(EventType)


@pytest.mark.parametrize("name", ["order", "order_page", "timeline", "problem"])
def test_answers_have_every_field_of_the_published_ones(name: str, saga: Saga) -> None:
    """Clients of today's API go on working."""
    order_id = saga.place()
    answers = {
        "order": saga.order(order_id),
        "order_page": saga.client.get("/v1/orders").json,
        "timeline": {"results": saga.timeline(order_id)},
        "problem": saga.client.post("/v1/orders", json={}).get_json(force=True),
    }
    golden = read(GOLDEN / f"api.{name}.v1.json")
    assert missing(golden, answers[name]) == []
    assert answers[name].keys() >= golden.keys()


def test_the_comparison_notices_what_breaks_a_consumer() -> None:
    """A field that is gone or of another type, at any depth; an added one is fine."""
    golden = {"a": 1, "b": [{"c": "x"}], "d": None}
    assert missing(golden, {"a": 2, "b": [{"c": "y", "e": 1}], "d": "set", "f": 1}) == []
    assert missing(golden, {"b": [{"c": 5}], "d": None}) == ["$.a: gone", "$.b[0].c: str became int"]
