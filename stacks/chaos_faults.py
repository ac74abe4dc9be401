"""What is done to the stack while it works: a table of faults, a seeded schedule, and the hands that do it.

Nothing here repairs. A process that a fault killed is started again after a moment, and so is one that ended by
itself, as any supervisor would; the latter is counted.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from random import Random

import redis

from shared.contracts.queues import EVENTS_QUEUE, Queue, dead_letter_queue
from stacks.local import LocalStack
from stacks.processes import poll, tail, wait_for
from stacks.servers import RabbitMQ, Redis, Server

PROCESSES = ("psp", "payments", "delivery", "notifications", "orders", "recorder", "beat", "api")
QUEUES = (*map(str, Queue), EVENTS_QUEUE)
_LONGEST_DOWN = 2.0  # seconds that something stays down
_REGISTERED = 60  # seconds for the processes to declare the queues again
_DELAY_LEVELS = 28  # kombu's queues for native delayed delivery
_LAST_LINES = 40
_LONGEST_WORDS = 300  # characters
_LOOK_EVERY = 0.5  # seconds between two looks for a process that ended by itself


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong ``count`` times in a full run; faults of one ``target`` never overlap."""

    name: str
    target: str
    count: int
    strike: Callable[["Rig", str, float], None]
    in_small: int = 1
    in_control: int = 0


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault at one moment: seconds after the start of the load. ``down`` is how many seconds it lasts."""

    at: float
    down: float
    fault: Fault


class Rig:
    """The stack under faults: its processes and servers by name, each held by one hand at a time."""

    def __init__(self, stack: LocalStack) -> None:
        self.stack = stack
        self.servers: dict[str, Server] = {server.name: server for server in stack.servers}
        self.done: Counter[str] = Counter()
        self.ended: list[str] = []  # processes that did so by themselves, with the end of their log
        self._locks = {name: threading.Lock() for name in PROCESSES}
        self.over = threading.Event()

    @contextlib.contextmanager
    def supervised(self) -> Iterator[None]:
        """Within the block, start again whatever ends by itself."""
        thread = threading.Thread(target=self._supervise, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join()

    def kill(self, name: str, down: float) -> None:
        """SIGKILL a process of the application with all it started, and start it again."""
        with self._locks[name]:
            self.stack.processes[name].kill()
            time.sleep(down)
            self.stack.processes[name].start()

    def wait_ready(self, timeout: float) -> None:
        """Wait until every process does its work; note those that do not."""
        for name in PROCESSES:
            if not poll(partial(self.stack.ready, name), timeout):
                self.ended.append(f"{name}: runs, but does not work within {timeout:g} s")

    def _supervise(self) -> None:
        while not self.over.wait(_LOOK_EVERY):
            for name, lock in self._locks.items():
                if lock.acquire(blocking=False):
                    try:
                        self._revive(name)
                    finally:
                        lock.release()

    def _revive(self, name: str) -> None:
        process = self.stack.processes[name]
        if not process.running:
            self.ended.append(f"{name}: {_last_words(tail(process.log, _LAST_LINES))}")
            process.start()


def kill(rig: Rig, target: str, down: float) -> None:
    """Kill a process of the application."""
    rig.kill(target, down)


def restart(rig: Rig, target: str, down: float) -> None:
    """Shut a server down in order and start it again."""
    _end_and_start(rig.servers[target], rig.servers[target].stop, down)


def crash(rig: Rig, target: str, down: float) -> None:
    """Kill a server and start it again."""
    _end_and_start(rig.servers[target], rig.servers[target].kill, down)


def delete_vhost(rig: Rig, target: str, down: float) -> None:
    """Take RabbitMQ's virtual host away with every queue and message, and give an empty one back."""
    server = rig.servers[target]
    assert isinstance(server, RabbitMQ)  # noqa: S101 - the table below says so
    server.delete_vhost()
    time.sleep(down)
    server.add_vhost()
    _wait_registered(server)


def flush(rig: Rig, target: str, down: float) -> None:  # noqa: ARG001 - a flush does not last
    """Make Redis forget everything."""
    server = rig.servers[target]
    assert isinstance(server, Redis)  # noqa: S101 - the table below says so
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


FAULTS = (
    Fault("kill -9 payments", "payments", 6, kill, in_control=1),
    Fault("kill -9 delivery", "delivery", 5, kill),
    Fault("kill -9 notifications", "notifications", 4, kill),
    Fault("kill -9 orders", "orders", 5, kill),
    Fault("kill -9 recorder", "recorder", 4, kill),
    Fault("kill -9 beat", "beat", 2, kill),
    Fault("kill -9 gunicorn", "api", 3, kill),
    Fault("restart RabbitMQ", "rabbitmq", 1, restart),
    Fault("kill -9 RabbitMQ", "rabbitmq", 1, crash),
    Fault("delete RabbitMQ's vhost", "rabbitmq", 1, delete_vhost),
    Fault("FLUSHALL on Redis", "redis", 3, flush, in_control=1),
    Fault("restart Redis", "redis", 1, restart),
    Fault("restart PostgreSQL", "postgres", 1, restart),
)


def schedule(counts: Callable[[Fault], int], seconds: float, random: Random) -> list[Strike]:
    """Spread the faults over the time: each one's strikes evenly, with chance within their share of it."""
    strikes = []
    for fault in FAULTS:
        share = seconds / max(1, counts(fault))
        for number in range(counts(fault)):
            at, down = (number + random.random()) * share, random.uniform(0.2, _LONGEST_DOWN)
            strikes.append(Strike(at, down, fault))
    return sorted(strikes, key=lambda strike: strike.at)


def carry_out(rig: Rig, strikes: Sequence[Strike], started: float, struck: Callable[[str], None]) -> list[Future[None]]:
    """Do them, those of different targets side by side; ``started`` is the monotonic time that they count from."""
    targets = {strike.fault.target for strike in strikes}
    pool = ThreadPoolExecutor(max(1, len(targets)), thread_name_prefix="fault")

    def one_after_the_other(target: str) -> None:
        for strike in strikes:
            if strike.fault.target == target:
                if rig.over.wait(max(0.0, started + strike.at - time.monotonic())):
                    return
                struck(strike.fault.name)
                strike.fault.strike(rig, target, strike.down)
                rig.done[strike.fault.name] += 1

    futures = [pool.submit(one_after_the_other, target) for target in targets]
    pool.shutdown(wait=False)
    return futures


def _end_and_start(server: Server, end: Callable[[], None], down: float) -> None:
    if isinstance(server, RabbitMQ):
        _wait_registered(server)
    end()
    time.sleep(down)
    server.start()
    server.wait_ready()


def _wait_registered(server: RabbitMQ) -> None:
    """Wait until the processes declared the queues and RabbitMQ wrote them to its register.

    RabbitMQ 3.10 writes it late: a crash before that would break a queue for good, which is none of our faults.
    """
    wait_for(lambda: all(map(server.on_disk, queue_names())), _REGISTERED, "the processes declared their queues again")


def _last_words(text: str) -> str:
    """Return what a log says about its process's end: Celery's own line if there is one, else the last line."""
    lines = text.splitlines() or ["it said nothing"]
    events = [str(json.loads(line).get("event")) for line in lines if line.startswith("{") and line.endswith("}")]
    telling = [event for event in events if event.startswith("Unrecoverable error")]
    return (telling or lines)[-1][:_LONGEST_WORDS]


def queue_names() -> list[str]:
    """Return every queue that holds work: the services', their dead letters, and what is put off."""
    return [*QUEUES, *map(dead_letter_queue, QUEUES), *(f"celery_delayed_{n}" for n in range(_DELAY_LEVELS))]
