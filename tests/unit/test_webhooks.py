"""Webhooks in: what is signed, new and in time has its one effect; everything else has none."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from kombu import Message, Queue
from kombu.exceptions import OperationalError
from standardwebhooks import Webhook
from werkzeug.test import TestResponse

from api import create_app, signatures
from api.dispatcher import Dispatcher
from shared.contracts.events import EventType, event_id, parse_event
from shared.contracts.queues import EVENTS_QUEUE, TaskName
from shared.contracts.queues import Queue as QueueName
from shared.database import get_database
from shared.messaging.app import declare_topology
from simulators.webhooks import new_secret, signed
from tests.conftest import UseSettings
from tests.support import json_logs, new_body
from workers.orders import operations, sweeper, webhooks
from workers.orders.webhooks import Receipt, WebhookReceipt

SECRETS = {"payments": new_secret(), "delivery": new_secret()}
REVERSED = {"type": "payment.reversed", "timestamp": "2026-01-02T03:04:05Z", "data": {"transaction_id": "txn_1"}}


def now() -> datetime:
    """The time in whole seconds, as it is signed."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass
class House:
    """The API with its broker, and a sender of webhooks."""

    app: Celery
    client: FlaskClient
    use: UseSettings

    def post(
        self,
        source: str,
        body: Any,
        message_id: str = "msg_1",
        at: datetime | None = None,
        secret: str | None = None,
        **headers: str,
    ) -> TestResponse:
        """Send a message, signed by the sender's secret; ``headers`` go over those of the signature."""
        text = body if isinstance(body, str) else json.dumps(body)
        right = signed([secret or SECRETS[source]], message_id, text, at)
        given_ = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(f"/v1/webhooks/{source}", data=text, headers={**right, **given_})

    def taken(self, queue: str) -> list[Message]:
        """Take what was published to a queue."""
        with self.app.connection_for_read() as connection:
            bound = Queue(queue, channel=connection.default_channel, no_declare=True)
            accepted = ["json", "application/cloudevents+json"]
            messages = list(iter(lambda: bound.get(no_ack=True, accept=accepted), None))
            for message in messages:
                _ = message.payload  # decoded while there is a channel
        return messages

    def tasks(self) -> list[str]:
        """Take the names of the tasks that wait for the payments worker."""
        return [message.headers["task"] for message in self.taken(QueueName.PAYMENTS)]

    def events(self) -> list[dict[str, Any]]:
        """Take the events that wait for the recorder."""
        return [message.payload for message in self.taken(EVENTS_QUEUE)]


@pytest.fixture
def broker_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Call it with True to have the broker refuse every message, with False to have it back."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OperationalError("connection refused")

    real = Dispatcher.publish

    def switch(away: bool) -> None:
        monkeypatch.setattr(Dispatcher, "publish", (lambda self, _publish: real(self, refuse)) if away else real)

    return switch


@pytest.fixture
def house_(house: UseSettings) -> Iterator[House]:
    """An API that knows both senders, on the memory broker, with no worker."""
    house(payments_webhook_secrets=(SECRETS["payments"],), delivery_webhook_secrets=(SECRETS["delivery"],))
    from workers import app  # noqa: PLC0415 - makes the process's app, which reads the settings

    app.conf.task_always_eager = False
    declare_topology(app)
    flask = create_app(celery=app)
    yield House(app, flask.test_client(), house)
    flask.extensions["dispatcher"]._pool.shutdown()


def place() -> str:
    """Store an order; return its id."""
    return operations.place(new_body(), "corr-1")[0].id


def carried(order_id: str, kind: str = "delivery.picked_up", **data: Any) -> dict[str, Any]:
    """A courier's message about an order."""
    return {"type": kind, "timestamp": now().isoformat(), "data": {"order_id": order_id, **data}}


def receipts() -> dict[tuple[str, str], datetime]:
    """What was put down as received."""
    with get_database("orders").transaction() as session:
        return {(row.source, row.webhook_id): row.signed_at for row in session.query(WebhookReceipt)}


def test_a_reversal_has_the_ledger_read(house_: House) -> None:
    """The message is a hint: it publishes the reconciliation, and states nothing itself."""
    answer = house_.post("payments", REVERSED)
    assert (answer.status_code, answer.json) == (202, {})
    assert house_.tasks() == [TaskName.RECONCILE]
    assert house_.events() == []


@pytest.mark.parametrize("kind", ["delivery.picked_up", "delivery.delivered"])
def test_a_couriers_message_is_an_event_of_the_order(house_: House, kind: str) -> None:
    """At the courier's own time, under an id that the same fact always has, with the order's correlation id."""
    order_id, time = place(), datetime.now(UTC) - timedelta(hours=3)
    body = {**carried(order_id, kind, courier="cou-ada"), "timestamp": time.isoformat()}
    assert house_.post("delivery", body).status_code == 202
    (envelope,) = house_.events()
    event = parse_event(envelope)
    assert (event.id, event.type, event.subject) == (event_id(order_id, kind), kind, order_id)
    assert (event.time, event.source, event.correlation_id) == (time, "courier", "corr-1")
    assert event.data == {"courier": "cou-ada"}


def test_what_the_courier_states_shows_on_the_timeline_and_changes_no_status(house_: House) -> None:
    """Late or early, the timeline is in the order in which things happened."""
    order_id, first = place(), datetime.now(UTC)
    for minutes, kind in ((2, "delivery.delivered"), (1, "delivery.picked_up")):
        body = {**carried(order_id, kind), "timestamp": (first + timedelta(minutes=minutes)).isoformat()}
        house_.post("delivery", body, message_id=kind)
    before = operations.find(order_id)
    operations.record([parse_event(event) for event in house_.events()])
    after = operations.find(order_id)
    assert before is not None
    assert after is not None
    assert before.status == after.status
    shown = [event.type for event in operations.timeline(order_id) or ()]
    assert shown == ["order.placed", "delivery.picked_up", "delivery.delivered"]


def test_the_same_fact_under_two_ids_is_one_event(house_: House) -> None:
    """Two messages, one fact: the recorder sees one id, and keeps the first."""
    order_id = place()
    for number in range(2):
        assert house_.post("delivery", carried(order_id), message_id=f"msg_{number}").status_code == 202
    events = [parse_event(event) for event in house_.events()]
    assert len({event.id for event in events}) == 1
    for event in events:
        operations.record([event])
    assert len(operations.timeline(order_id) or ()) == 2


def test_an_order_that_nobody_knows_is_not_found(house_: House) -> None:
    """Nothing is published and nothing put down: should it exist one day, the message may come again."""
    body = carried(str(uuid.uuid4()))
    assert house_.post("delivery", body).status_code == 404
    assert (house_.events(), receipts()) == ([], {})


WRONG: dict[str, dict[str, Any]] = {
    "another secret": {"secret": new_secret()},
    "the other sender's secret": {"secret": SECRETS["delivery"]},
    "another message's id": {"webhook_id": "msg_2"},
    "an old time": {"at": now() - timedelta(minutes=6)},
    "a time ahead": {"at": now() + timedelta(hours=1)},
    "another time than signed": {"webhook_timestamp": str(int(now().timestamp()) - 1)},
    "a time that is none": {"webhook_timestamp": "nan"},
    "no signature": {"webhook_signature": ""},
    "no version": {"webhook_signature": "abc"},
    "another version": {"webhook_signature": "v2,abc="},
    "no base64": {"webhook_signature": "v1,ä"},
    "an empty signature": {"webhook_signature": "v1,"},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_message_that_is_not_verified_is_refused_without_a_word(house_: House, name: str) -> None:
    """The same 401 whatever is wrong; nothing is published, nothing put down."""
    answer = house_.post("payments", REVERSED, **WRONG[name])
    body = answer.get_json(force=True)
    assert (answer.status_code, answer.content_type) == (401, "application/problem+json")
    assert body["detail"] == "UNAUTHORIZED"
    assert body.keys() == {"type", "title", "status", "detail", "instance"}
    assert (house_.tasks(), receipts()) == ([], {})


@pytest.mark.parametrize("left_out", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_each_header_is_needed(house_: House, left_out: str) -> None:
    """A message without its id, time or signature is nobody's."""
    headers = signed([SECRETS["payments"]], "msg_1", json.dumps(REVERSED))
    del headers[left_out]
    assert house_.client.post("/v1/webhooks/payments", data=json.dumps(REVERSED), headers=headers).status_code == 401


def test_the_body_is_verified_byte_for_byte(house_: House) -> None:
    """The same JSON with other white space was not signed."""
    headers = signed([SECRETS["payments"]], "msg_1", json.dumps(REVERSED))
    other = json.dumps(REVERSED, indent=1)
    assert house_.client.post("/v1/webhooks/payments", data=other, headers=headers).status_code == 401


@given(body=st.binary(max_size=40), signature=st.text(max_size=40), time=st.text(max_size=15))
def test_no_unsigned_message_is_more_than_unauthorized(body: bytes, signature: str, time: str) -> None:
    """Whatever the headers hold, the answer is no and never an error of ours."""
    headers = {"webhook-id": "msg_1", "webhook-timestamp": time, "webhook-signature": signature}
    assert not signatures._signed(Webhook(SECRETS["payments"]), body, headers)


def test_a_message_signed_with_several_secrets_is_taken(house_: House) -> None:
    """While a secret is replaced, the sender signs with the old and the new one."""
    text = json.dumps(REVERSED)
    headers = signed([new_secret(), SECRETS["payments"]], "msg_1", text)
    assert house_.client.post("/v1/webhooks/payments", data=text, headers=headers).status_code == 202


def test_either_of_two_secrets_is_taken(house_: House) -> None:
    """While a secret is replaced, we take both."""
    new = new_secret()
    house_.use(payments_webhook_secrets=(SECRETS["payments"], new))
    assert house_.post("payments", REVERSED, "msg_1").status_code == 202
    assert house_.post("payments", REVERSED, "msg_2", secret=new).status_code == 202


@pytest.mark.parametrize("source", ["payments", "delivery"])
def test_without_a_secret_there_is_no_such_endpoint(house_: House, source: str) -> None:
    """Nothing could be verified, so nothing is taken."""
    house_.use(payments_webhook_secrets=(), delivery_webhook_secrets=())
    assert house_.post(source, REVERSED).status_code == 404


def test_a_replayed_message_is_refused(house_: House) -> None:
    """The very same message again has no effect, and its sender is told."""
    at = now()
    assert house_.post("payments", REVERSED, at=at).status_code == 202
    house_.tasks()
    again = house_.post("payments", REVERSED, at=at)
    assert (again.status_code, again.get_json(force=True)["detail"]) == (409, "WEBHOOK_REPLAYED")
    assert house_.tasks() == []


def test_digits_behind_the_point_make_no_other_message(house_: House) -> None:
    """The signature covers whole seconds, so a copy could have any fraction."""
    at = now()
    assert house_.post("payments", REVERSED, at=at).status_code == 202
    stamp = f"{int(at.timestamp())}.9"
    assert house_.post("payments", REVERSED, at=at, webhook_timestamp=stamp).status_code == 409


def test_a_senders_retry_is_taken_without_effect(house_: House) -> None:
    """The same id signed later: our answer got lost. Its copy, and one of the first attempt, are replays."""
    first, second = now() - timedelta(seconds=5), now()
    assert house_.post("payments", REVERSED, at=first).status_code == 202
    house_.tasks()
    retried = house_.post("payments", REVERSED, at=second)
    assert (retried.status_code, retried.json) == (200, {})
    assert [house_.post("payments", REVERSED, at=at).status_code for at in (second, first)] == [409, 409]
    assert house_.tasks() == []


def test_two_senders_may_use_the_same_id(house_: House) -> None:
    """An id is its sender's own."""
    assert house_.post("payments", REVERSED).status_code == 202
    assert house_.post("delivery", carried(place())).status_code == 202
    assert set(receipts()) == {("payments", "msg_1"), ("delivery", "msg_1")}


@pytest.mark.parametrize("source", ["payments", "delivery"])
def test_a_broker_that_is_away_has_the_message_sent_again(
    house_: House, broker_away: Callable[[bool], None], source: str
) -> None:
    """503 with a time to come back, nothing put down as received; the very same message is taken later."""
    body = REVERSED if source == "payments" else carried(place())
    at = now()
    broker_away(True)
    answer = house_.post(source, body, at=at)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert receipts() == {}
    broker_away(False)
    assert house_.post(source, body, at=at).status_code == 202


@pytest.mark.parametrize("body", [{"type": "payment.updated"}, {"type": "x" * 1000, "data": None, "timestamp": 5}])
def test_an_unknown_type_is_accepted_and_ignored(house_: House, body: dict[str, Any]) -> None:
    """The sender may have more to tell than we want to know; only the type is logged."""
    with json_logs() as lines:
        assert house_.post("payments", {**body, "secret": "s3cret"}).status_code == 202
        (line,) = [line for line in lines() if line["event"] == "webhook_ignored"]
    assert body["type"].startswith(line["type"])
    assert "s3cret" not in json.dumps(line)
    assert house_.tasks() == []


def test_a_type_of_the_other_sender_is_ignored(house_: House) -> None:
    """A courier reverses no payment, even with a good signature."""
    assert house_.post("delivery", REVERSED).status_code == 202
    assert (house_.tasks(), house_.events()) == ([], [])


def test_unknown_fields_are_ignored(house_: House) -> None:
    """It is an event: its sender may add to it."""
    body = {**REVERSED, "version": 2, "data": {"transaction_id": "txn_1", "reason": "fraud"}}
    assert house_.post("payments", body).status_code == 202
    assert house_.tasks() == [TaskName.RECONCILE]


LONG_AGO = (now() - timedelta(days=31)).isoformat()
SOON = (now() + timedelta(hours=1)).isoformat()
MALFORMED: list[tuple[str, Any, set[str]]] = [
    ("payments", "no json", {"body"}),
    ("payments", "[" * 100_000, {"body"}),
    ("payments", "[1]", {"body"}),
    ("payments", {}, {"type", "data"}),
    ("payments", {"type": 5, "data": {"transaction_id": "txn_1"}}, {"type"}),
    ("payments", {"type": "payment.reversed"}, {"data"}),
    ("payments", {"type": "payment.reversed", "data": {"transaction_id": ""}}, {"data.transaction_id"}),
    ("payments", {"type": "payment.reversed", "data": {"transaction_id": "a\x00b"}}, {"data.transaction_id"}),
    ("delivery", {"type": "delivery.delivered"}, {"timestamp", "data"}),
    ("delivery", {**carried("no id")}, {"data.order_id"}),
    ("delivery", {**carried(str(uuid.uuid4()), courier="c" * 65)}, {"data.courier"}),
    *[
        ("delivery", {**carried(str(uuid.uuid4())), "timestamp": time}, {"timestamp"})
        for time in (LONG_AGO, SOON, "yesterday", 5, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59")
    ],
]


@pytest.mark.parametrize(("source", "body", "fields"), MALFORMED)
def test_a_malformed_message_names_its_fields(house_: House, source: str, body: Any, fields: set[str]) -> None:
    """A signed message of a known type that we cannot read is the sender's mistake."""
    answer = house_.post(source, body)
    assert answer.status_code == 400
    assert {error["field"] for error in answer.get_json(force=True)["errors"]} == fields
    assert (house_.tasks(), house_.events(), receipts()) == ([], [], {})


def test_an_id_that_cannot_be_kept_is_named(house_: House) -> None:
    """Without its id a replay could not be told."""
    answer = house_.post("payments", REVERSED, message_id="m" * 256)
    assert (answer.status_code, answer.get_json(force=True)["errors"][0]["field"]) == (400, "webhook-id")
    assert house_.tasks() == []


def test_a_body_that_is_too_large_is_not_read(house: UseSettings, house_: House) -> None:
    """The API's limit holds here, too."""
    house_.client.application.config["MAX_CONTENT_LENGTH"] = 100
    assert house_.post("payments", {**REVERSED, "more": "x" * 100}).status_code == 413


def test_copies_that_arrive_at_once_are_told_apart(house: UseSettings) -> None:
    """Both were looked up before either was put down: one is new, the other a replay."""
    at = now()
    assert webhooks.look_up("payments", "msg_1", at) == webhooks.put_down("payments", "msg_1", at) == Receipt.NEW
    assert webhooks.put_down("payments", "msg_1", at) == Receipt.REPLAYED
    assert webhooks.put_down("payments", "msg_1", at + timedelta(seconds=1)) == Receipt.RETRIED
    assert webhooks.put_down("payments", "msg_1", at) == Receipt.REPLAYED
    assert receipts() == {("payments", "msg_1"): at + timedelta(seconds=1)}


def test_old_receipts_are_forgotten_a_bounded_number_at_a_time(
    house: UseSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a day the signature is long too old to be replayed."""
    for hours in (26, 25, 23):
        webhooks.put_down("payments", f"msg_{hours}", now() - timedelta(hours=hours))
    monkeypatch.setattr(sweeper, "_FORGET", 1)
    sweeper.forget_old()
    assert {webhook_id for _, webhook_id in receipts()} == {"msg_25", "msg_23"}
    sweeper.forget_old()
    sweeper.forget_old()
    assert {webhook_id for _, webhook_id in receipts()} == {"msg_23"}


def test_the_sweeper_forgets(house_: House) -> None:
    """Nobody has to think of it: the periodic task does it."""
    webhooks.put_down("payments", "msg_1", now() - timedelta(days=2))
    house_.app.loader.import_default_modules()
    house_.app.tasks[TaskName.SWEEP]()
    assert receipts() == {}


def test_the_description_names_headers_and_bodies(house_: House) -> None:
    """A sender's developer finds what to send, and what the answers mean."""
    document = house_.client.get("/openapi.json").json
    for path, schema in (("payments", "PaymentWebhook"), ("delivery", "DeliveryWebhook")):
        operation = document["paths"][f"/v1/webhooks/{path}"]["post"]
        headers = {each["name"] for each in operation["parameters"] if each["in"] == "header"}
        assert headers == {"webhook-id", "webhook-timestamp", "webhook-signature"}
        body = operation["requestBody"]["content"]["application/json"]["schema"]
        assert body["anyOf"][0] == {"$ref": f"#/components/schemas/{schema}"}
        assert {"200", "202", "400", "401", "404", "409", "503"} <= operation["responses"].keys()
        assert operation["tags"] == ["webhooks"]
    known = document["components"]["schemas"]["DeliveryWebhook"]["properties"]["type"]["enum"]
    assert known == [EventType.DELIVERY_PICKED_UP, EventType.DELIVERY_DELIVERED]


def test_secrets_are_made_as_the_standard_wants() -> None:
    """A prefix and the base64 of 32 random bytes; no two alike."""
    first, second = new_secret(), new_secret()
    assert first != second
    assert len(base64.b64decode(first.removeprefix("whsec_"))) == 32
