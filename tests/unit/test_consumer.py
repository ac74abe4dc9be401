"""What the workers' consumer lets through and what it refuses, and what Celery's own would have done with it."""

from __future__ import annotations

import json
import math
import uuid
import zlib
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from hypothesis import given
from hypothesis import strategies as st
from kombu import Message
from kombu.utils.json import dumps

from shared.contracts.queues import TaskName
from shared.messaging.consumer import MAX_BYTES, CarefulConsumer, defect
from tests.support import REMOVED, new_waybill

TASKS = {str(name): Mock(name=name) for name in TaskName}
SECRET = "4111-1111"
EMBED: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
DEEP = 100_000


def headers(**changes: Any) -> dict[str, Any]:
    """Headers as Celery writes them, with some changed or removed."""
    task_id = str(uuid.uuid4())
    good = {
        "lang": "py",
        "task": str(TaskName.CHARGE),
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": task_id,
        "parent_id": None,
        "argsrepr": "(order)",
        "kwargsrepr": "{}",
        "origin": "gen1@host",
        "ignore_result": True,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not REMOVED}


def body(**embed: Any) -> bytes:
    """A good body, with parts of its embed changed."""
    return json.dumps([[new_waybill().to_dict()], {}, {**EMBED, **embed}]).encode()


def message(of: bytes | None = None, /, head: Any = None, **properties: Any) -> Message:
    """A message as it comes from the broker."""
    told = {"content_type": "application/json", "content_encoding": "utf-8", **properties}
    known = head if head is not None else headers()
    return Message(body() if of is None else of, headers=known, accept={"application/json"}, channel=Mock(), **told)


GOOD = {
    "as Celery writes it": message(),
    "a chain": message(body(chain=[{"task": "delivery.assign", "args": [], "kwargs": {}, "options": {}}])),
    "only what must be": message(head={"id": "1", "task": str(TaskName.CHARGE)}),
    "parked before": message(head=headers(**{"x-death": [{"queue": "payments", "count": 1}], "retries": 8})),
    "a header of a later version": message(head=headers(novelty={"a": 1})),
    "an eta": message(head=headers(eta="2099-01-01T00:00:00+00:00")),
    "expired": message(head=headers(expires="2001-01-01T00:00:00+00:00")),
    "compressed": message(zlib.compress(body()), head=headers(compression="application/x-gzip")),
    "a strange encoding, which JSON does not need": message(content_encoding="utf-99"),
    "limits": message(head=headers(timelimit=[300, 1.5])),
}


@pytest.mark.parametrize("given_message", GOOD.values(), ids=GOOD)
def test_what_can_be_processed_passes(given_message: Message) -> None:
    """Nothing that a worker could process is turned away, a later version's additions included."""
    assert defect(given_message, TASKS) is None


BAD_HEADERS: dict[str, Any] = {
    "no headers": {},
    "no id": headers(id=REMOVED),
    "no task": headers(task=REMOVED),
    "an unknown task": headers(task="payments.gamble"),
    **{f"id {value!r}"[:20]: headers(id=value) for value in (None, 5, "", "x" * 256, ["a"], {"a": 1}, b"\xff")},
    **{f"task {value!r}": headers(task=value) for value in (None, 5, "", ["a"], {})},
    **{f"retries {value!r}": headers(retries=value) for value in (None, -1, 10**9, "many", 1.5, [1])},
    **{
        f"timelimit {value!r}": headers(timelimit=value)
        for value in (5, "ab", [1], [1, 2, 3], ["a", None], [math.nan, 1])
    },
    **{f"eta {value!r}": headers(eta=value) for value in ("tomorrow", 5, [1], "9999-99-99T00:00:00")},
    **{f"expires {value!r}": headers(expires=value) for value in ("tomorrow", -1, {"a": 1})},
    **{
        f"{name} as a list": headers(**{name: [["a"]]})
        for name in (
            "root_id",
            "parent_id",
            "group",
            "group_index",
            "shadow",
            "argsrepr",
            "kwargsrepr",
            "origin",
            "lang",
        )
    },
    "stamps as text": headers(stamps="x"),
    "stamped_headers as numbers": headers(stamped_headers=[1, 2]),
    "replaced_task_nesting as text": headers(replaced_task_nesting="x"),
}


@pytest.mark.parametrize("head", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_bad_headers_are_refused_with_the_reason(head: dict[str, Any]) -> None:
    """Each header that Celery would stumble over is looked at first; the reason says that it is the headers."""
    reason = defect(message(head=head), TASKS)
    assert reason is not None
    assert reason.startswith("headers: ")


BAD_BODIES: dict[str, Message] = {
    "empty": message(b""),
    "no JSON": message(b"{"),
    "not UTF-8": message(b'"\xff\xfe"'),
    "a foreign content type": message(content_type="application/x-python-serialize"),
    "an unknown content type": message(content_type="application/octet-stream"),
    "too deep": message(b"[" * DEEP + b"]" * DEEP),
    "too deep inside": message(b"[[" + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"], {}, {}]"),
    "too large": message(b'"' + b"x" * MAX_BYTES + b'"'),
    **{
        f"{text[:20]!r}": message(text.encode())
        for text in ("null", "5", '"text"', "{}", "[]", "[[], {}]", "[[], {}, {}, {}]")
    },
    **{
        f"{text!r}": message(text.encode())
        for text in ("[{}, {}, {}]", "[[], [], {}]", "[[], {}, []]", "[null, {}, {}]")
    },
}


@pytest.mark.parametrize("given_message", BAD_BODIES.values(), ids=BAD_BODIES)
def test_bad_bodies_are_refused_with_the_reason(given_message: Message) -> None:
    """What cannot be decoded, or is no [args, kwargs, embed], is refused; the reason says that it is the body."""
    reason = defect(given_message, TASKS)
    assert reason is not None
    assert reason.startswith("body: ")


@pytest.mark.parametrize(
    "embed", [{"chain": "x"}, {"chain": [1]}, {"callbacks": {}}, {"errbacks": [["a"]]}, {"chord": [1]}], ids=str
)
def test_a_forged_embed_is_refused(embed: dict[str, Any]) -> None:
    """What comes after the task must have the shape of signatures."""
    reason = defect(message(body(**embed)), TASKS)
    assert reason is not None
    assert reason.startswith("embed: ")


@pytest.mark.parametrize(
    "given_message",
    [
        message(head=headers(id=[SECRET])),
        message(head=headers(eta=SECRET)),
        message(head=headers(task=SECRET)),
        message(f'[["{SECRET}"]'.encode()),
        message(f'{{"{SECRET}": 1}}'.encode()),
        message(body(chain=SECRET)),
        message(content_type=SECRET),
    ],
    ids=["id", "eta", "task", "undecodable", "no list", "chain", "content type"],
)
def test_the_reason_never_repeats_the_contents(given_message: Message) -> None:
    """It goes to the log, where personal data must not be."""
    reason = defect(given_message, TASKS)
    assert reason is not None
    assert SECRET not in reason


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
some_headers = st.dictionaries(st.sampled_from(sorted(headers())), anything | st.binary(max_size=8), max_size=3)


@given(changes=some_headers)
def test_with_any_headers_that_pass_celery_makes_a_request(changes: dict[str, Any]) -> None:
    """``defect`` never raises, and of what it lets through Celery can make a request: the worker lives."""
    given_message = message(head=headers(**changes))
    if defect(given_message, TASKS) is None:
        given_message.headers |= {"expires": None, "eta": None}
        request = Request(given_message, app=Celery(set_as_current=False), task=Mock(), headers=given_message.headers)
        request.info(safe=True)
        assert isinstance(hash(request.id), int)
        assert len(request.time_limits) == 2


@given(payload=anything)
def test_any_body_is_refused_or_has_its_three_parts(payload: Any) -> None:
    """Any JSON is judged without an error; what passes is what Celery takes apart."""
    given_message = message(dumps(payload).encode())
    if defect(given_message, TASKS) is None:
        args, kwargs, embed = payload
        assert isinstance(args, list)
        assert isinstance(kwargs, dict)
        assert isinstance(embed, dict)


@given(raw=st.binary(max_size=200), kind=st.text(max_size=20), encoding=st.text(max_size=12))
def test_any_bytes_under_any_label_are_judged(raw: bytes, kind: str, encoding: str) -> None:
    """Bytes that are nothing at all never raise."""
    assert defect(message(raw, content_type=kind, content_encoding=encoding), TASKS)


def consumer_of(kind: type[Consumer]) -> Any:
    """A consumer with nothing behind it that hands on to ``TASKS``."""
    made = kind.__new__(kind)
    made.app, made.strategies, made.connection_errors = Celery(set_as_current=False), dict(TASKS), (OSError,)
    made.connection, made.controller, made.on_task_message = Mock(), Mock(), []
    made.connection.transport.driver_type = "amqp"
    made.call_soon = lambda callback, *args: callback(*args)
    made._maximum_prefetch_restored = True
    for task in TASKS.values():
        task.reset_mock()
    return made


def test_what_is_refused_is_rejected_and_never_acknowledged() -> None:
    """Rejected without requeue: the broker keeps it as a dead letter."""
    for given_message in (message(b"{"), message(head=headers(id=REMOVED)), message(b"5")):
        given_message.channel.reset_mock()
        consumer_of(CarefulConsumer).create_task_handler()(given_message)
        assert [call[0] for call in given_message.channel.method_calls] == ["basic_reject"]
        assert given_message.channel.basic_reject.call_args.kwargs == {"requeue": False}


def test_what_passes_is_handed_on_without_eta_and_expiry() -> None:
    """The broker delays, so an ``eta`` would hold a prefetch slot; an expired message would be acknowledged: lost."""
    given_message = message(head=headers(eta="2099-01-01T00:00:00+00:00", expires="2001-01-01T00:00:00+00:00"))
    consumer_of(CarefulConsumer).create_task_handler()(given_message)
    TASKS[str(TaskName.CHARGE)].assert_called_once()
    assert (given_message.headers["eta"], given_message.headers["expires"]) == (None, None)
    given_message.channel.basic_reject.assert_not_called()


def test_the_memory_broker_cannot_delay_so_the_eta_stays() -> None:
    """In the embedded stack the worker itself waits until the eta."""
    consumer = consumer_of(CarefulConsumer)
    consumer.connection.transport.driver_type = "memory"
    given_message = message(head=headers(eta="2099-01-01T00:00:00+00:00"))
    consumer.create_task_handler()(given_message)
    assert given_message.headers["eta"] == "2099-01-01T00:00:00+00:00"


@pytest.mark.parametrize("compression", ["application/x-gzip", "application/x-rar"])
def test_what_cannot_be_unpacked_is_rejected(compression: str) -> None:
    """kombu tells of it another way, before the message is received; it ends in the dead letters all the same."""
    given_message = message(head=headers(compression=compression))
    given_message._reraise_error(consumer_of(CarefulConsumer).on_decode_error)
    given_message.channel.basic_ack.assert_not_called()
    given_message.channel.basic_reject.assert_called_once_with(given_message.delivery_tag, requeue=False)


def test_the_stock_consumer_would_acknowledge_what_it_cannot_decode() -> None:
    """The negative control: Celery's own loses the message for which ours has a dead letter."""
    given_message, error = message(b"{"), ValueError("no JSON")
    consumer_of(Consumer).on_decode_error(given_message, error)
    given_message.channel.basic_ack.assert_called_once()
    kept = message(b"{")
    consumer_of(CarefulConsumer).on_decode_error(kept, error)
    kept.channel.basic_ack.assert_not_called()
    kept.channel.basic_reject.assert_called_once()


def test_the_stock_consumer_would_crash_on_a_missing_id() -> None:
    """The negative control: the strategy makes a request of it, and its error leaves the consumer's loop."""
    given_message = message(head=headers(id=REMOVED))
    with pytest.raises(KeyError):
        Request(given_message, app=Celery(set_as_current=False), task=Mock(), headers=given_message.headers)
    assert defect(given_message, TASKS)
