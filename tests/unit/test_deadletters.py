"""Putting dead letters back, on the embedded broker: same id and chain, a new life, and never lost on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner
from kombu import Message, Producer, Queue
from kombu.exceptions import OperationalError

from shared.contracts.queues import EVENTS_QUEUE, TaskName, dead_letter_queue
from shared.deadletters import moves, store
from shared.deadletters.selection import Selection, find, queues_of
from shared.errors import WaybillError
from shared.messaging.app import declare_topology
from shared.messaging.memory import Channel
from tests.conftest import UseSettings
from tests.support import new_waybill
from workers.orders.desk import Records, dlq

CHAIN = [{"task": "notifications.send", "args": [], "kwargs": {}, "options": {}}]


@pytest.fixture
def app(house: UseSettings) -> Celery:
    """The fleet's app on this test's own memory broker."""
    from workers import app  # noqa: PLC0415 - makes the process's app

    declare_topology(app)
    return app


def take(app: Celery, queue: str) -> list[Message]:
    """Take what waits in a queue."""
    with app.connection_for_read() as connection:
        taken = Queue(queue, channel=connection.default_channel, no_declare=True)
        messages = []
        while (message := taken.get()) is not None:
            message.ack()
            messages.append(message)
        return messages


def bury(app: Celery, queue: str = "payments", task_id: str = "task-1", **headers: Any) -> list[Any]:
    """Send a message and reject it, as a worker does with what it parks; return its body."""
    body = [[new_waybill().to_dict()], {}, {"chain": CHAIN}]
    told = {"id": task_id, "task": str(TaskName.CHARGE), "retries": 8, "eta": "2099-01-01T00:00:00", **headers}
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        properties = {"correlation_id": task_id, "message_id": "message-1"}
        Producer(channel).publish(body, routing_key=queue, exchange="", headers=told, serializer="json", **properties)
        message = Queue(queue, channel=channel, no_declare=True).get()
        assert message is not None
        message.reject()
    return body


def requeue(app: Celery, queue: str = "payments") -> list[str]:
    """Put everything back; return the ids."""
    letters = [each.letter for each in find(app, Records(), queues_of(queue), Selection())]
    return [letter.id for letter in moves.requeue(app, Records(), letters)]


def test_it_comes_back_with_id_body_and_chain(app: Celery) -> None:
    """The order goes on where it stopped: the rest of its chain is still inside."""
    body = bury(app)
    assert requeue(app) == ["task-1"]
    (message,) = take(app, "payments")
    assert json.loads(message.body) == body
    assert message.headers["id"] == message.properties["correlation_id"] == "task-1"
    assert message.properties["message_id"] == "message-1"
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
    assert message.properties["delivery_mode"] == 2
    assert take(app, "payments.dlq") == []


def test_it_begins_a_new_life(app: Celery) -> None:
    """Attempts and delay of the last life are gone, or it would die again at once; so is the broker's book-keeping."""
    old = {
        "x-death": [],
        "x-first-death-queue": "q",
        "x-first-death-reason": "rejected",
        "x-first-death-exchange": "",
        "x-last-death-reason": "rejected",
        "x-delivery-count": 11,
        "x-acquired-count": 11,
        "x-opt-anything": 1,
    }
    bury(app, **old, lang="py", mark="kept")
    requeue(app)
    (message,) = take(app, "payments")
    assert message.headers == {
        "id": "task-1",
        "task": TaskName.CHARGE,
        "retries": 0,
        "eta": None,
        "lang": "py",
        "mark": "kept",
    }


def test_what_is_no_task_gets_no_header_of_one(app: Celery) -> None:
    """An event goes back as an event."""
    with app.connection_for_write() as connection:
        dead = dead_letter_queue(EVENTS_QUEUE)
        Producer(connection).publish({"specversion": "1.0"}, exchange="", routing_key=dead, headers={"x-death": []})
    requeue(app, EVENTS_QUEUE)
    (message,) = take(app, EVENTS_QUEUE)
    assert message.headers == {}


def test_the_oldest_goes_first(app: Celery) -> None:
    """They come back in the order in which they died."""
    for number in range(5):
        bury(app, task_id=f"task-{number}")
    assert requeue(app) == [f"task-{number}" for number in range(5)]
    assert [message.headers["id"] for message in take(app, "payments")] == [f"task-{number}" for number in range(5)]


def test_what_dies_again_meanwhile_is_not_put_back_for_ever(app: Celery) -> None:
    """A message that still cannot be processed is put back once in a run."""
    for number in range(3):
        bury(app, task_id=f"task-{number}")
    letters = [each.letter for each in find(app, Records(), ["payments"], Selection())]
    seen = []
    for each in moves.requeue(app, Records(), letters):
        seen.append(each.id)
        bury(app, task_id=f"again-{len(seen)}")
    assert sorted(seen) == ["task-0", "task-1", "task-2"]
    assert len(take(app, "payments.dlq")) == 3


def test_a_message_that_cannot_be_published_stays(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is acknowledged before the broker took the copy: the dead letter is still there, and so are the rest."""
    for number in range(3):
        bury(app, task_id=f"task-{number}")
    publish, calls = store.publish, []

    def refuse(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OperationalError("NO_ROUTE")
        publish(*args)

    with monkeypatch.context() as patched:
        patched.setattr(store, "publish", refuse)
        with pytest.raises(OperationalError):
            requeue(app)
    assert [message.headers["id"] for message in take(app, "payments")] == ["task-0"]
    assert [message.headers["id"] for message in take(app, "payments.dlq")] == ["task-1", "task-2"]


def test_killed_before_it_acknowledges_there_are_two_rather_than_none(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least once: the copy is in the queue, and the dead letter is still where it was."""
    bury(app)

    def killed(_message: Message, *_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Message, "ack", killed)
        with pytest.raises(KeyboardInterrupt):
            requeue(app)
    assert [message.headers["id"] for message in take(app, "payments")] == ["task-1"]
    assert [message.headers["id"] for message in take(app, "payments.dlq")] == ["task-1"]


def test_a_copy_is_persistent_and_must_be_routed(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `mandatory` a queue that is missing would swallow it, and the acknowledgement lose it."""
    bury(app)
    options: dict[str, Any] = {}

    def note(_channel: Channel, message: dict[str, Any], **told: Any) -> None:
        options.update(told, delivery_mode=message["properties"]["delivery_mode"])

    with monkeypatch.context() as patched:
        patched.setattr(Channel, "basic_publish", note)
        requeue(app)
    assert options == {"mandatory": True, "delivery_mode": 2, "exchange": "", "routing_key": "payments"}


def test_an_unknown_queue_is_named(app: Celery) -> None:
    """One line says which queues there are."""
    with pytest.raises(WaybillError, match=r"payment: no such queue\. There are payments, "):
        requeue(app, "payment")


def test_looking_takes_nothing_away(app: Celery) -> None:
    """Every queue is looked through; what was only looked at is still there, in its order."""
    for number in range(3):
        bury(app, task_id=f"task-{number}")
    bury(app, queue="delivery", task_id="other")
    for _ in range(2):
        found = [(each.letter.queue, each.letter.id) for each in find(app, Records(), queues_of(None), Selection())]
        assert found == [*(("payments", f"task-{number}") for number in range(3)), ("delivery", "other")]


def test_a_pickle_is_never_loaded(app: Celery) -> None:
    """Looking at a letter runs nothing of what it holds."""
    with app.connection_for_write() as connection:
        Producer(connection).publish(
            b"cos\nsystem\n(S'exit 1'\ntR.",
            exchange="",
            routing_key=dead_letter_queue("payments"),
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={"id": "pickled", "task": str(TaskName.CHARGE)},
        )
    (found,) = find(app, Records(), ["payments"], Selection())
    assert found.letter.is_malformed
    assert "ContentDisallowed" in found.letter.reason


def run(app: Celery, *arguments: str) -> Any:
    """Run the command as ``celery -A workers dlq`` does."""

    class Context:
        """What Celery puts into click's context."""

    context = Context()
    context.app = app  # type: ignore[attr-defined]
    return CliRunner().invoke(dlq, arguments, obj=context)


def test_the_command_puts_back_every_queue(app: Celery) -> None:
    """`dlq requeue --all` says how many went back to each, as text or as JSON."""
    bury(app)
    bury(app, queue="orders", task_id="task-2")
    done = run(app, "requeue", "--all", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"requeued": 2, "queues": {"payments": 1, "orders": 1}, "malformed": 0}
    assert "0 put back" in run(app, "requeue", "--all").output


def test_the_command_puts_back_one_queue(app: Celery) -> None:
    """With a name, the other queues are left alone."""
    bury(app)
    bury(app, queue="orders", task_id="task-2")
    assert json.loads(run(app, "requeue", "--all", "--json", "orders").stdout)["queues"] == {"orders": 1}
    assert len(take(app, "payments.dlq")) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["requeue"], "say which: ID..., or --all"),
        (["requeue", "--all", "nowhere"], "nowhere: no such queue. There are"),
    ],
)
def test_a_mistake_is_one_line(app: Celery, arguments: list[str], words: str) -> None:
    """What, where, what to do; no traceback."""
    done = run(app, *arguments)
    assert done.exit_code != 0
    assert words in done.output
    assert "Traceback" not in done.output


def test_a_broker_that_is_away_is_one_line(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the variable, and that nothing was lost."""
    bury(app)

    def refuse(*_: Any, **__: Any) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(store, "publish", refuse)
    done = run(app, "requeue", "--all", "payments")
    assert done.exit_code == 1
    assert "BROKER_URL: connection refused. 0 put back, 1 not; what was not moved is where it was." in done.output
