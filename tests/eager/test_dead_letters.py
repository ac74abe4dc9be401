"""Messages that travel: what a worker cannot process is in its queue's dead letters, unchanged."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from kombu import Message

from shared.contracts import saga as table
from shared.deadletters import archive, moves
from shared.deadletters.selection import Selection, find
from shared.errors import Transient, WaybillError
from tests.eager.conftest import Saga
from tests.support import wait_until
from workers.orders.desk import Records

Serve = Callable[[], AbstractContextManager[None]]


def dead_letter(saga: Saga, queue: str) -> Message:
    """Wait for the one dead letter of a queue and take it."""
    found: list[Message] = []
    wait_until(lambda: found.extend(saga.take(f"{queue}.dlq")) or found)
    (message,) = found
    return message


def size(saga: Saga, queue: str) -> int:
    """Return how many messages wait in a queue."""
    with saga.app.connection_for_read() as connection:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


@pytest.mark.parametrize("error", [Transient("HTTP 503"), KeyError("a bug")])
def test_a_parked_message_keeps_the_rest_of_its_chain(
    saga: Saga, worker: Serve, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is in ``payments.dlq`` with body, id and chain; put back, the order goes on where it stopped."""
    saga.use(step_max_retries=0)
    waybill = saga.store()
    sent = table.forward(waybill).apply_async()

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(saga.gateway, "charge", fail)
        with worker():
            wait_until(lambda: size(saga, "payments.dlq"))
    saga.drain()
    assert saga.status(waybill.order_id) == "AWAITING_PAYMENT"
    message = dead_letter(saga, "payments")
    args, _, embed = message.payload
    assert args == [waybill.to_dict()]
    assert [rest["task"] for rest in reversed(embed["chain"])] == ["delivery.assign", "notifications.send"]
    assert (message.headers["id"], message.headers["task"]) == (sent.id, "payments.charge")


def test_a_requeued_dead_letter_continues_the_order(saga: Saga, worker: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parked, put back, COMPLETED; charged once."""
    saga.use(step_max_retries=0)
    waybill = saga.store()
    table.forward(waybill).apply_async()
    with worker():
        with monkeypatch.context() as patch:
            patch.setattr(saga.gateway, "charge", lambda *_: 1 / 0)
            wait_until(lambda: size(saga, "payments.dlq"))
        records = Records()
        (found,) = find(saga.app, records, ["payments"], Selection())
        assert [each.id for each in moves.requeue(saga.app, records, [found.letter])] == [found.letter.id]
        wait_until(lambda: saga.told(waybill.order_id))
    saga.drain()
    assert saga.status(waybill.order_id) == "COMPLETED"
    assert saga.money == (1, 0)


@pytest.mark.parametrize("body", [None, {}, {"order_id": "x"}, [], "text"])
def test_a_malformed_waybill_is_a_dead_letter(saga: Saga, worker: Serve, body: Any) -> None:
    """No retry, no event, the message unchanged."""
    saga.app.send_task("payments.charge", args=[body])
    with worker():
        message = dead_letter(saga, "payments")
    assert message.payload[0] == [body]
    assert saga.published() == []
    assert saga.money == (0, 0)


def test_a_task_nobody_knows_is_a_dead_letter(saga: Saga, worker: Serve) -> None:
    """An old worker keeps what a newer version sent."""
    saga.app.send_task("payments.split", args=[{}])
    with worker():
        assert dead_letter(saga, "payments").headers["task"] == "payments.split"


def test_an_order_completes_over_the_queues(saga: Saga, worker: Serve) -> None:
    """The same saga as eagerly, message by message; nothing is left in any queue."""
    waybill = saga.store()
    table.forward(waybill).apply_async()
    with worker():
        wait_until(lambda: saga.told(waybill.order_id))
    saga.drain()
    assert saga.status(waybill.order_id) == "COMPLETED"
    assert sum(size(saga, queue.name) + size(saga, f"{queue.name}.dlq") for queue in saga.app.conf.task_queues) == 0


def test_a_dropped_dead_letter_undoes_its_order(saga: Saga, worker: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported first, on the timeline with who and why, and the order ends CANCELLED instead of hanging."""
    saga.use(step_max_retries=0)
    waybill = saga.store()
    table.forward(waybill).apply_async()
    with worker():
        with monkeypatch.context() as patch:
            patch.setattr(saga.gateway, "charge", lambda *_: 1 / 0)
            wait_until(lambda: size(saga, "payments.dlq"))
        records = Records()
        (found,) = find(saga.app, records, ["payments"], Selection())
        kept, done, cancelled = moves.new_export(), [], set()
        moves.drop(saga.app, records, [found.letter], "customer called", kept, done=done, cancelled=cancelled)
        wait_until(lambda: saga.told(waybill.order_id) == ["cancelled"])
    saga.drain()
    assert saga.status(waybill.order_id) == "CANCELLED"
    (dropped,) = [each for each in saga.timeline(waybill.order_id) if each["type"] == "deadletter.dropped"]
    assert dropped["data"]["reason"] == "customer called"
    assert "@" in dropped["data"]["by"]
    assert kept.stat().st_mode & 0o777 == 0o600
    assert size(saga, "payments.dlq") == 0
    assert (done, cancelled) == ([found.letter.id], {waybill.order_id})
    moves.read(saga.app, archive.load(kept), done=[])
    assert size(saga, "payments.dlq") == 1


def test_an_edited_waybill_is_checked_before_it_goes_back(
    saga: Saga, worker: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken or another order's waybill changes nothing; a good one is put to work."""
    saga.use(step_max_retries=0)
    waybill = saga.store(payment_method="tok_declined")
    with worker():
        with monkeypatch.context() as patch:
            patch.setattr(saga.gateway, "charge", lambda *_: 1 / 0)
            table.forward(waybill).apply_async()
            wait_until(lambda: size(saga, "payments.dlq"))
        records = Records()
        (found,) = find(saga.app, records, ["payments"], Selection())
        text = moves.editable(found.letter)
        other = text.replace(waybill.order_id, "11111111-1111-4111-8111-111111111111")
        for wrong in ("{", "{}", other):
            with pytest.raises(WaybillError, match=f"{found.letter.id}: "):
                moves.requeue_edited(saga.app, records, found.letter, wrong)
        assert size(saga, "payments.dlq") == 1
        moves.requeue_edited(saga.app, records, found.letter, text.replace("Berlin", "Bonn"))
        wait_until(lambda: saga.told(waybill.order_id))
    assert size(saga, "payments.dlq") == 0
