"""A fleet as pytest-celery's clusters: what one test file works on.

It is the session's servers with a virtual host, databases and a Redis database of its own, and the processes that
its tests start. The nodes are local processes, see ``containers``.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import kombu
import redis
import urllib3
from celery import Celery
from kombu import Message
from kombu.transport.native_delayed_delivery import MAX_LEVEL, level_name
from pytest_celery import (
    CeleryBrokerCluster,
    CeleryTestBroker,
    CeleryTestCluster,
    CeleryTestNode,
    CeleryTestWorker,
    CeleryWorkerCluster,
)
from sqlalchemy import text

from shared import database, migrations, settings
from shared.contracts.queues import EVENTS_QUEUE, Queue
from shared.contracts.waybill import Waybill
from shared.messaging import app as messaging
from shared.messaging.topology import TRANSPORT_OPTIONS
from shared.settings import SERVICES, Settings
from simulators.ledger import Ledger
from simulators.psp import serve
from stacks.local import ROOT, UNLIMITED, LocalStack, procfile
from stacks.processes import LocalProcess, Ports, poll
from stacks.servers import RabbitMQ, Server
from tests.integration.containers import LocalWorker, ProcessContainer, WorkerContainer
from workers.delivery.roster import load_roster

TIMEOUT = 30  # seconds in which a condition has to come true


class Fleet:
    """The session's servers, a virtual host, databases and a Redis database for one test file, and its processes.

    The payment provider runs in a thread, its ``ledger`` at hand. ``extra`` is added to every process's environment.
    """

    def __init__(self, servers: LocalStack, number: int, folder: Path, psp_url: str, ledger: Ledger) -> None:
        self.rabbitmq = _virtual_host(servers.rabbitmq, f"{RabbitMQ.vhost}{number}")
        self.postgres, self.redis = servers.postgres, servers.redis
        self.ledger = ledger
        self.databases = self.postgres.create_databases(f"{service}{number}" for service in SERVICES)
        variables = {f"{s.upper()}_DATABASE_URL": self.database_url(s, number) for s in SERVICES}
        self.redis_url = self.redis.url.removesuffix("0") + str(number % 16)
        self.extra = {**UNLIMITED, **variables, "BROKER_URL": self.rabbitmq.url, "REDIS_URL": self.redis_url}
        self.extra["PSP_URL"] = psp_url
        self.stack = LocalStack(folder, Ports.free(), extra=self.extra)
        self.stack.rabbitmq = self.rabbitmq
        self.nodes: list[CeleryTestNode] = []
        self._processes = ExitStack()

    def database_url(self, service: str, number: int | None = None) -> str:
        """The URL of a service's database."""
        if number is None:
            return self.extra[f"{service.upper()}_DATABASE_URL"]
        return self.databases[f"{service}{number}"]

    @property
    def api_url(self) -> str:
        """Where the API answers once it is started."""
        return self.stack.api_url

    @cached_property
    def broker_cluster(self) -> CeleryBrokerCluster:
        """The broker as a cluster of one node."""
        ready = partial(lambda server: server._answers(), self.rabbitmq)
        container = ProcessContainer(self.rabbitmq, ready, url=self.rabbitmq.url, host_url=self.rabbitmq.url)
        return CeleryBrokerCluster(CeleryTestBroker(container, self.app))

    @cached_property
    def store_cluster(self) -> CeleryTestCluster:
        """Redis and PostgreSQL."""
        containers = [
            ProcessContainer(self.redis, self.redis._answers, url=self.redis_url, host_url=self.redis_url),
            ProcessContainer(self.postgres, self.postgres._answers, **dict.fromkeys(("url", "host_url"), "postgres")),
        ]
        return CeleryTestCluster(*(CeleryTestNode(container) for container in containers))

    @cached_property
    def app(self) -> Celery:
        """A client's app with the fleet's configuration."""
        return self.client(**TRANSPORT_OPTIONS[False])

    def client(self, **transport_options: Any) -> Celery:
        """A client's app, which is nobody's default."""
        app = Celery("tests", set_as_current=False)
        app.config_from_object("celeryconfig")
        app.conf.update(broker_url=self.rabbitmq.url, broker_transport_options=transport_options)
        return app

    def settings(self, **more: Any) -> Settings:
        """What the processes' settings are, for calling use cases within this process."""
        urls = {service: self.database_url(service) for service in SERVICES}
        return Settings(broker_url=self.rabbitmq.url, redis_url=self.redis_url, databases=urls, **more)

    def node(self, name: str, *options: str, ready: Callable[[], bool] | None = None, **extra: str) -> CeleryTestNode:
        """A process of the Procfile with further options and variables, not started yet."""
        command = f"{procfile()[name]} {shlex.join(options)}"
        process = self.process(name, ["/bin/sh", "-c", command], **extra)
        condition = ready or partial(self.stack.ready, name)
        is_worker = name in set(Queue)
        container = (WorkerContainer if is_worker else ProcessContainer)(process, condition)
        node = LocalWorker(container, self.app) if is_worker else CeleryTestNode(container, self.app)
        self.nodes.append(node)
        return node

    def process(self, name: str, command: list[str], **extra: str) -> LocalProcess:
        """Any process with the fleet's environment, not started yet."""
        environment = {**self.stack.environment, **extra}
        log = self.stack.folder / "log" / f"{name}.log"
        return LocalProcess(name, command, log=log, environment=environment, cwd=ROOT, tied=True)

    def start(self, *names: str, **extra: str) -> CeleryTestCluster:
        """Start processes of the Procfile and wait until they do their work."""
        return start(*(self.node(name, **extra) for name in names))

    @contextmanager
    def running(self, *names: str, **extra: str) -> Iterator[CeleryTestCluster]:
        """Start processes for the block."""
        cluster = self.start(*names, **extra)
        try:
            yield cluster
        finally:
            for node in cluster:
                node.kill()

    def prepare(self) -> None:
        """Make the virtual host, the schemas and the couriers."""
        self.rabbitmq.add_vhost()
        with self.inside():
            for service in SERVICES:
                migrations.upgrade(service)
            load_roster(ROOT / "deploy" / "couriers.json")

    @contextmanager
    def inside(self, **more: Any) -> Iterator[Settings]:
        """Run use cases of the services within this process, on the fleet's databases."""
        with using(self.settings(**more)) as chosen:
            yield chosen

    def teardown(self) -> None:
        """End every process and give back what was taken from the servers."""
        for node in self.nodes:
            node.teardown()
        self.app.close()
        self.rabbitmq.delete_vhost()

    @contextmanager
    def policy(self, queue: str, **definition: int) -> Iterator[None]:
        """Change a queue's limits for the block; of an argument and a policy RabbitMQ takes the lower one."""
        vhost, pattern = self.rabbitmq.vhost, f"^{re.escape(queue)}$"
        rules = json.dumps({name.replace("_", "-"): value for name, value in definition.items()})
        self.rabbitmq.ctl("set_policy", "-p", vhost, "tests", pattern, rules, "--apply-to", "queues")
        try:
            yield
        finally:
            self.rabbitmq.ctl("clear_policy", "-p", vhost, "tests")

    def empty_virtual_host(self) -> None:
        """Take every queue and exchange away."""
        self.rabbitmq.delete_vhost()
        self.rabbitmq.add_vhost()

    def declare(self) -> None:
        """Declare the topology as a process of the fleet would."""
        messaging.declare_topology(self.app)

    def publish(self, task: str, waybill: Waybill, *rest: str, **options: Any) -> str:
        """Send a task with the rest of its chain, as ``saga`` does; return its id."""
        chain = [self.app.signature(str(name)) for name in reversed(rest)]
        return str(self.app.send_task(str(task), args=(waybill.to_dict(),), chain=chain or None, **options).id)

    def take(self, queue: str, most: int = 1000) -> list[Message]:
        """Take the messages that wait in a queue."""
        with self.app.connection_for_read() as connection:
            channel = connection.default_channel
            messages: list[Message] = []
            while len(messages) < most and (raw := channel.basic_get(queue)) is not None:
                message = channel.message_to_python(raw)  # not Queue.get: that raises for a body it cannot unpack
                message.accept = {message.content_type}
                message.ack()
                messages.append(message)
            return messages

    def replay(self, stream: str, enough: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """Read a stream of events from its beginning, until there are enough of them."""
        events: list[dict[str, Any]] = []

        def take(message: Message) -> None:
            events.append(json.loads(message.body))
            message.ack()

        with self.app.connection_for_read() as connection:
            queue = kombu.Queue(stream, consumer_arguments={"x-stream-offset": "first"}, no_declare=True)
            with kombu.Consumer(connection.default_channel, [queue], on_message=take, prefetch_count=100):
                while not enough(events):
                    connection.drain_events(timeout=TIMEOUT)
        return events

    def count(self, queue: str) -> int:
        """How many messages wait in a queue; -1 without the queue."""
        with self.app.connection_for_read() as connection:
            try:
                return int(connection.default_channel.queue_declare(queue, passive=True).message_count)
            except connection.channel_errors:
                return -1

    def unacknowledged(self, queue: str) -> int:
        """How many messages of a queue somebody has in hand."""
        options = ["-p", self.rabbitmq.vhost, "name", "messages_unacknowledged", "--formatter=json"]
        rows = json.loads(self.rabbitmq.ctl("list_queues", *options))
        return next(int(row["messages_unacknowledged"]) for row in rows if row["name"] == queue)

    def forget_keys(self) -> None:
        """Lose everything in Redis."""
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushdb()

    def delayed(self) -> int:
        """How many messages wait in the broker's delay queues."""
        with self.app.connection_for_read() as connection:
            declare = connection.default_channel.queue_declare
            return sum(declare(level_name(n), passive=True).message_count for n in range(MAX_LEVEL + 1))

    def delete_queue(self, name: str) -> None:
        """Take a queue away."""
        with self.app.connection_for_write() as connection:
            connection.default_channel.queue_delete(name)

    def rows(self, service: str, statement: str, **values: Any) -> list[Any]:
        """Run SQL in a service's database."""
        engine = database.Database(self.database_url(service)).engine
        try:
            with engine.begin() as connection:
                result = connection.execute(text(statement), values)
                return list(result) if result.returns_rows else []
        finally:
            engine.dispose()

    def admit(self, service: str, *, allow: bool) -> None:
        """Let a service's clients log in, or throw them out and refuse them."""
        name = self.database_url(service).rpartition("/")[2]
        with self.postgres._connection() as connection, connection.cursor() as cursor:
            cursor.execute(f"ALTER ROLE {name} {'LOGIN' if allow else 'NOLOGIN'}")
            cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (name,))

    def faults(self, **rates: float) -> None:
        """Set the payment provider's faults."""
        answer = urllib3.request("POST", f"{self.extra['PSP_URL']}/faults", json=rates, retries=False, timeout=5)
        assert answer.status == HTTPStatus.OK

    def charges(self, key: str) -> list[dict[str, Any]]:
        """What was charged under an operation key."""
        return [
            entry for entry in self.ledger.entries() if (entry["kind"], entry["idempotency_key"]) == ("charge", key)
        ]


@contextmanager
def fleet(servers: LocalStack, number: int, folder: Path) -> Iterator[Fleet]:
    """A fleet for the block."""
    with serve(Ledger()) as psp:
        made = Fleet(servers, number, folder, psp.url, psp.ledger)
        made.prepare()
        try:
            yield made
        finally:
            made.teardown()


def start(*nodes: CeleryTestNode) -> CeleryTestCluster:
    """Start nodes as one cluster and wait until each is ready."""
    cluster = (CeleryWorkerCluster if all(isinstance(n, CeleryTestWorker) for n in nodes) else CeleryTestCluster)(
        *nodes
    )
    for node in cluster:
        node.container.start()
    assert cluster.ready()
    return cluster


@contextmanager
def using(chosen: Settings) -> Iterator[Settings]:
    """Take other settings for the block, with connections of their own."""
    before = list(settings._chosen)
    database.forget_connections()
    settings.use(chosen)
    try:
        yield chosen
    finally:
        database.forget_connections()
        settings._chosen[:] = before


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """A server is down for the block: connections are refused."""
    server.stop()
    try:
        yield
    finally:
        server.start()
        server.wait_ready()


@contextmanager
def silent(server: Server) -> Iterator[None]:
    """A server is a black hole for the block: connections are accepted, and never answered."""
    pid = server.process.pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
        server.wait_ready()


def eventually(condition: Callable[[], Any], what: str, timeout: float = TIMEOUT) -> None:
    """Fail with ``what`` unless ``condition`` comes true in time."""
    assert poll(lambda: bool(condition()), timeout), f"not within {timeout} s: {what}"


def events_of(fleet: Fleet) -> list[dict[str, Any]]:
    """Take the events that no recorder has taken."""
    return [json.loads(message.body) for message in fleet.take(EVENTS_QUEUE)]


def _virtual_host(server: RabbitMQ, name: str) -> RabbitMQ:
    """The same server with another virtual host; kombu needs it to exist before it connects."""
    view = copy.copy(server)
    view.vhost = name  # type: ignore[misc]  # of the class, and here of the copy
    return view
