"""Poison: hundreds of mutated messages to every queue. None is lost, none kills a worker, each has its reason."""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest
import urllib3
from kombu import Message, Producer
from pytest_celery import CeleryTestCluster

from shared.contracts.events import EventType, new_event
from shared.contracts.queues import EVENTS_QUEUE, Queue, TaskName, dead_letter_queue
from shared.contracts.waybill import Waybill
from tests.integration.nodes import Fleet, eventually
from tests.support import BODY
from workers.orders import operations

SEED = 20260101
QUEUES = (*map(str, Queue), EVENTS_QUEUE)
MARK = "message_id"
DEEP, TEN_MB = 20_000, 10_000_000
#: The task with which each queue is poisoned, and the event that says that it was processed.
TASKS = {
    Queue.PAYMENTS: (TaskName.CHARGE, EventType.PAYMENT_CAPTURED),
    Queue.DELIVERY: (TaskName.ASSIGN, EventType.DELIVERY_ASSIGNED),
    Queue.NOTIFICATIONS: (TaskName.NOTIFY, EventType.CUSTOMER_NOTIFIED),
    Queue.ORDERS: (TaskName.CANCEL, EventType.ORDER_CANCELLED),
}
JUNK = [None, True, 0, -1, 2**62, 1.5, "", "x" * 300, "\u0000", "🙈", [], [None], {}, {"a": [{}]}, [[["deep"]]]]
Headers, Body = dict[str, Any], Any
Properties = dict[str, Any]


class Letter:
    """A message to be mutated: what Celery would have sent for an order."""

    def __init__(self, queue: str, waybill: Waybill) -> None:
        self.queue, self.order_id = queue, waybill.order_id
        self.properties: Properties = {"content_type": "application/json", "content_encoding": "utf-8"}
        self.raw: bytes | None = None
        self.effect: str
        if queue == EVENTS_QUEUE:
            self.effect = EventType.STEP_RETRYING
            event = new_event(self.effect, waybill.order_id, source="test", correlation_id="poison")
            self.headers: Headers = {}
            self.body: Body = event.to_cloudevent()
            self.properties["content_type"] = "application/cloudevents+json"
        else:
            task, self.effect = TASKS[Queue(queue)]
            self.headers = {
                "lang": "py", "task": str(task), "id": waybill.order_id, "root_id": waybill.order_id, "parent_id": None,
                "group": None, "retries": 0, "eta": None, "expires": None, "timelimit": [None, None],
                "argsrepr": "-", "kwargsrepr": "{}", "origin": "test", "ignore_result": True,
            }  # fmt: skip
            self.body = [[waybill.to_dict()], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]

    @property
    def facts(self) -> dict[str, Any]:
        """The waybill or the event inside."""
        return self.body if self.queue == EVENTS_QUEUE else self.body[0][0]  # type: ignore[no-any-return]

    def encoded(self) -> bytes:
        """The bytes that travel."""
        return json.dumps(self.body).encode() if self.raw is None else self.raw


def a_header(letter: Letter, pick: random.Random) -> None:
    """One header has another type."""
    names = [*letter.headers, "group_index", "shadow", "stamps", "stamped_headers", "replaced_task_nesting", "chain"]
    letter.headers[pick.choice([*names, "x-death", "headers", "delivery_info", "compression"])] = pick.choice(JUNK)


def a_missing_header(letter: Letter, pick: random.Random) -> None:
    """Some headers are missing."""
    for name in pick.sample(sorted(letter.headers), min(len(letter.headers), pick.randint(1, 4))):
        del letter.headers[name]


def a_fact(letter: Letter, pick: random.Random) -> None:
    """One field of the waybill or event has another type."""
    letter.facts[pick.choice(sorted(letter.facts))] = pick.choice(JUNK)


def a_missing_fact(letter: Letter, pick: random.Random) -> None:
    """One field is missing."""
    del letter.facts[pick.choice(sorted(letter.facts))]


def a_body(letter: Letter, pick: random.Random) -> None:
    """The body is something else."""
    letter.body = pick.choice([*JUNK, [[]], [[], {}], [[], {}, {}, {}], [{}, [], {}], ["args", {}, {}]])


def bytes_(letter: Letter, pick: random.Random) -> None:
    """The bytes are cut or disturbed."""
    whole = letter.encoded()
    cut = pick.randrange(len(whole))
    letter.raw = pick.choice([b"", whole[:cut], whole[:cut] + b"\xff\xfe" + whole[cut:], pick.randbytes(200), b"NaN"])


def a_label(letter: Letter, pick: random.Random) -> None:
    """The content type or encoding is wrong."""
    kinds = ["application/x-python-serialize", "application/x-yaml", "text/plain", "", "nonsense/ü", "application/json"]
    letter.properties["content_type"] = pick.choice(kinds)
    letter.properties["content_encoding"] = pick.choice(["utf-99", "binary", "utf-16", "", "base64"])


def compression(letter: Letter, pick: random.Random) -> None:
    """It says that it is packed, and is not, or is."""
    letter.headers["compression"] = pick.choice(["application/x-gzip", "application/x-rar", "application/x-bz2"])
    letter.raw = pick.choice([letter.encoded(), zlib.compress(letter.encoded()), b""])


def a_task(letter: Letter, pick: random.Random) -> None:
    """Nobody knows the task, or another service does; an event's type is unknown."""
    known = [str(name) for name in TaskName if not name.startswith(f"{letter.queue}.")]
    letter.headers["task"] = pick.choice([*known, "celery.accumulate", "os.system", "../x", "x" * 250])
    if letter.queue == EVENTS_QUEUE:
        letter.effect = letter.body["type"] = pick.choice(["a.b", "", "x" * 500])


def nesting(letter: Letter, pick: random.Random) -> None:
    """Deeper than any parser goes, or just as deep as it decodes and does not encode."""
    deep = pick.choice([DEEP, 900, 990])
    letter.raw = json.dumps(letter.body).replace('"Berlin"', "[" * deep + "]" * deep).encode()
    if b"[[" not in letter.raw:
        letter.raw = b"[" * deep + b"]" * deep


def size(letter: Letter, _: random.Random) -> None:
    """Ten megabytes."""
    letter.facts["note"] = "x" * TEN_MB


def a_version(letter: Letter, pick: random.Random) -> None:
    """A version that was never, or is not yet."""
    version = pick.choice([0, -1, 99, "1", None, 1.5])
    letter.facts.update(
        {"version": version, "specversion": str(version), "dataschema": f"urn:x:{version}", "novelty": 1}
    )


def a_time(letter: Letter, pick: random.Random) -> None:
    """Due in an age, or expired long ago."""
    moments = ["2199-01-01T00:00:00+00:00", "2001-01-01T00:00:00", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00"]
    letter.headers[pick.choice(["eta", "expires"])] = pick.choice([*moments, "soon", -1, 10**12])


def limits(letter: Letter, pick: random.Random) -> None:
    """Absurd time limits and retries."""
    letter.headers["timelimit"] = pick.choice([[0, 0], [-1, 1], [1e308, 1], [None], "ab", [[], []], ["1", "2"], 5])
    letter.headers["retries"] = pick.choice([0, -1, 8, 10**9, 2**62, "1", None, 1.5])


def an_id(letter: Letter, pick: random.Random) -> None:
    """An id that is no text, or a strange one."""
    letter.headers["id"] = pick.choice([1, None, ["a"], {"a": 1}, True, "", "x" * 255, "../../etc", "🙈", "\u0000"])


def what_comes_after(letter: Letter, pick: random.Random) -> None:
    """A forged chain, callback, errback or chord."""
    forged = [
        {"task": "os.system"},
        {"args": []},
        {},
        {"task": 5},
        {"task": "payments.gamble", "options": {"queue": 5}},
    ]
    name = pick.choice(["chain", "callbacks", "errbacks", "chord"])
    value = pick.choice(forged)
    if letter.queue != EVENTS_QUEUE:
        letter.body[2][name] = value if name == "chord" else pick.choice([[value], value, "x", [1], [None]])
    else:
        letter.body["data"] = pick.choice([value, [value], "x", 5])


MUTATIONS: list[Callable[[Letter, random.Random], None]] = [
    a_header, a_header, a_header, a_missing_header, a_fact, a_fact, a_missing_fact, a_body, bytes_, a_label,
    compression, a_task, nesting, a_version, a_time, limits, an_id, what_comes_after,
]  # fmt: skip
EACH = 4  # of every mutation to every queue


@pytest.fixture(scope="module")
def running(fleet: Fleet) -> Iterator[CeleryTestCluster]:
    """Every worker, the recorder and the API."""
    with fleet.running(*map(str, Queue), "recorder", "api") as cluster:
        yield cluster


def mutated(fleet: Fleet) -> dict[str, Letter]:
    """Make the messages, each for an order of its own, by the mark that stays on them whatever happens."""
    pick = random.Random(SEED)
    letters: dict[str, Letter] = {}
    with fleet.inside():
        for queue in QUEUES:
            for mutate in [*MUTATIONS * EACH, size]:
                order, _ = operations.place(dict(BODY), "poison")
                letter = Letter(queue, saga_waybill(order))
                mutate(letter, pick)
                letters[f"{queue}/{mutate.__name__}/{len(letters)}"] = letter
    return letters


def saga_waybill(order: Any) -> Waybill:
    """Return the waybill that travels for an order."""
    return operations.parse_waybill(order.waybill)


def publish(fleet: Fleet, letters: dict[str, Letter]) -> None:
    """Send them, each confirmed by the broker."""
    with fleet.app.connection_for_write() as connection:
        producer = Producer(connection)
        for mark, letter in letters.items():
            told = {**letter.properties, MARK: mark, "correlation_id": "poison"}
            producer.publish(
                letter.encoded(), exchange="", routing_key=letter.queue, headers=letter.headers, mandatory=True, **told
            )


def take(fleet: Fleet, queue: str) -> list[Message]:
    """Take the messages of a queue, those that cannot be unpacked as well."""
    with fleet.app.connection_for_read() as connection:
        channel, messages = connection.default_channel, []
        while (raw := channel.basic_get(queue, no_ack=True)) is not None:
            messages.append(channel.message_to_python(raw))
        return messages


class Reckoning:
    """What became of the messages; takes dead letters as they come."""

    def __init__(self, fleet: Fleet, letters: dict[str, Letter]) -> None:
        self.fleet, self.letters = fleet, letters
        self.died: list[tuple[str, Message]] = []
        self.lost = list(letters)

    def done(self) -> bool:
        """Say whether each message was processed or died, and none waits, is delayed or in hand."""
        for queue in QUEUES:
            self.died += [(queue, message) for message in take(self.fleet, dead_letter_queue(queue))]
        rows = self.fleet.rows("orders", "SELECT order_id || '/' || type FROM order_events")
        processed, dead = {row[0] for row in rows}, self.dead
        self.lost = [
            mark
            for mark, each in self.letters.items()
            if not dead[mark] and f"{each.order_id}/{each.effect}" not in processed
        ]
        return not self.lost and not self.held()

    def held(self) -> list[str]:
        """Return the queues that still have messages; as the broker counts, which is up to 5 s late."""
        options = ["-p", self.fleet.rabbitmq.vhost, "name", "messages", "--formatter=json"]
        rows = json.loads(self.fleet.rabbitmq.ctl("list_queues", *options))
        mine = [row for row in rows if row["name"] in QUEUES or row["name"].startswith("celery_delayed")]
        return [row["name"] for row in mine if row["messages"]]

    @property
    def dead(self) -> Counter[str]:
        """How often each of our messages died."""
        return Counter(str(message.properties[MARK]) for _, message in self.died if _is_ours(message))


def pids(cluster: CeleryTestCluster) -> dict[str, int | None]:
    """Which processes run, by name."""
    return {node.name(): node.container.process.pid for node in cluster if node.container.process.running}


def complete_an_order(fleet: Fleet) -> None:
    """Place an order over HTTP and see it completed."""
    placed = urllib3.request("POST", f"{fleet.api_url}/v1/orders", json=BODY, timeout=5, retries=False)
    assert placed.status == HTTPStatus.ACCEPTED
    url = f"{fleet.api_url}/v1/orders/{placed.json()['id']}"
    eventually(lambda: urllib3.request("GET", url, timeout=5).json()["status"] == "COMPLETED", "it completes")


def test_of_hundreds_of_mutated_messages_none_is_lost_and_none_kills(fleet: Fleet, running: CeleryTestCluster) -> None:
    """Each is processed or a dead letter of its queue with a reason; the workers live, and orders complete."""
    for queue in QUEUES:
        take(fleet, dead_letter_queue(queue))
    before, letters = pids(running), mutated(fleet)
    assert len(letters) >= 300
    publish(fleet, letters)
    reckoning = Reckoning(fleet, letters)
    try:
        eventually(reckoning.done, "every message has come to its end", timeout=60)
    finally:
        assert reckoning.lost == []
    assert max(reckoning.dead.values()) == 1
    for queue, message in reckoning.died:
        assert message.headers["x-first-death-reason"] in {"rejected", "delivery_limit"}
        assert message.headers["x-first-death-queue"] == queue
        assert _is_ours(message), message.headers
        assert message.properties[MARK].startswith(f"{queue}/")
    assert pids(running) == before
    complete_an_order(fleet)


def _is_ours(message: Message) -> bool:
    return "/" in str(message.properties.get(MARK))
