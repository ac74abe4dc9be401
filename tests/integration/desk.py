"""The dead-letter desk as its operator meets it: the command on the fleet's servers, and letters to work on."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from celery import current_app
from click.testing import CliRunner, Result
from kombu import Connection, Message, Producer

from shared.contracts.queues import TaskName, dead_letter_queue
from shared.contracts.waybill import Waybill
from shared.deadletters.letters import QUEUES
from stacks.local import ROOT
from tests.integration.nodes import Fleet, eventually
from tests.support import BODY, DeskCommands, new_waybill
from workers.orders import operations
from workers.orders.desk import dlq

CELERY = [sys.executable, "-m", "celery", "-A", "workers", "dlq"]
REST = (TaskName.ASSIGN, TaskName.NOTIFY)
DEAD = "payments.dlq"


class Desk(DeskCommands):
    """The desk of a fleet. ``run`` is the command within this process, ``started`` the real one, to be disturbed."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def clear(self) -> None:
        """Take every letter away, and declare what a test took away."""
        self.fleet.declare()
        with self.fleet.app.connection_for_write() as connection:
            for queue in (*QUEUES, *map(dead_letter_queue, QUEUES)):
                connection.default_channel.queue_purge(queue)

    def run(self, *arguments: str, **environment: str) -> Result:
        """Run it as Celery's command line does."""
        before = current_app._get_current_object()
        self.fleet.app.set_current()  # as the command's process has it: chains that undo are published by it
        try:
            with self.fleet.inside(var_dir=self.fleet.stack.folder):
                return CliRunner(env=environment).invoke(dlq, arguments, obj=SimpleNamespace(app=self.fleet.app))
        finally:
            before.set_current()

    def start(self, *arguments: str, command: Collection[str] = CELERY, **options: Any) -> subprocess.Popen[str]:
        """Start the real command."""
        environment = {**self.fleet.stack.environment, "TERM": "xterm", "COLUMNS": "100"}
        return subprocess.Popen([*command, *arguments], env=environment, cwd=ROOT, text=True, **options)

    def bury(self, count: int, queue: str = "payments") -> list[str]:
        """Send tasks and reject them as a worker does; return their ids. Nobody may consume the queue."""
        ids = [self.fleet.publish(TaskName.CHARGE, new_waybill(), *REST) for _ in range(count)]
        self.reject(count, queue)
        return ids

    def reject(self, count: int, queue: str = "payments") -> None:
        """Reject what waits in a queue."""
        with self.fleet.app.connection_for_read() as connection:
            channel = connection.default_channel
            for _ in range(count):
                channel.basic_reject(channel.basic_get(queue).delivery_tag, requeue=False)
        eventually(lambda: self.fleet.count(dead_letter_queue(queue)) == count, "they are dead letters")

    def bury_copies(self, ids: Collection[str], of: Callable[[str], Waybill]) -> None:
        """Put a letter for each id among the dead ones, with the waybill ``of`` it; fast, for many."""
        embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        with Connection(self.fleet.rabbitmq.url) as connection:
            producer = Producer(connection)
            for task_id in ids:
                headers = {"id": task_id, "task": str(TaskName.CHARGE), "retries": 8}
                producer.publish(
                    [[of(task_id).to_dict()], {}, embed],
                    exchange="",
                    routing_key=DEAD,
                    headers=headers,
                    delivery_mode=2,
                )
        eventually(lambda: self.fleet.count(DEAD) == len(ids), "they are dead letters")

    def bury_raw(self, body: bytes, queue: str = "payments", **properties: Any) -> None:
        """Put a message among the dead letters as it is."""
        with self.fleet.app.connection_for_write() as connection:
            Producer(connection).publish(body, exchange="", routing_key=dead_letter_queue(queue), **properties)

    def publish(self, message: Message, *queues: str) -> None:
        """Put a copy of a message into each queue."""
        with self.fleet.app.connection_for_write() as connection:
            for queue in queues:
                Producer(connection).publish(
                    message.body,
                    exchange="",
                    routing_key=queue,
                    headers=message.headers,
                    content_type=message.content_type,
                    content_encoding="utf-8",
                )

    def store(self, **address: str) -> Waybill:
        """Store an order as the API does, unpublished; return its waybill."""
        with self.fleet.inside():
            order, _ = operations.place({**BODY, "address": {**BODY["address"], **address}}, "dlq")
        return operations.parse_waybill(order.waybill)

    def place(self, *rest: str, **address: str) -> str:
        """Place an order, by default with the whole chain; return its id."""
        waybill = self.store(**address)
        self.fleet.publish(TaskName.CHARGE, waybill, *(rest or REST))
        return waybill.order_id

    def park(self, count: int, **address: str) -> list[str]:
        """Place orders while the provider is down, until each is parked; too few for its breaker. Return their ids."""
        self.fleet.faults(error_rate=1)
        ids = [self.place(**address) for _ in range(count)]
        eventually(lambda: {self.status(each) for each in ids} == {"AWAITING_PAYMENT"}, "the orders are parked")
        eventually(lambda: self.fleet.count(DEAD) == count, "each has a dead letter")
        return ids

    def status(self, order_id: str) -> str:
        """Return an order's status."""
        ((found,),) = self.fleet.rows("orders", "SELECT status FROM orders WHERE id = :id", id=order_id)
        return str(found)

    def timeline(self, order_id: str, event_type: str) -> list[dict[str, Any]]:
        """Return the data of an order's events of one type."""
        statement = "SELECT data FROM order_events WHERE order_id = :id AND type = :type"
        return [data for (data,) in self.fleet.rows("orders", statement, id=order_id, type=event_type)]

    def money(self, order_id: str) -> list[str]:
        """Return what moved for an order, in order."""
        statement = "SELECT operation_key, transaction_id FROM payments WHERE order_id = :id"
        ((key, transaction),) = self.fleet.rows("payments", statement, id=order_id)
        entries = self.fleet.ledger.entries()
        return [entry["kind"] for entry in entries if key == entry["idempotency_key"] or transaction in entry.values()]

    def ids_in(self, queue: str) -> list[str]:
        """Return the ids in a queue that nobody has in hand; afterwards it is as it was."""
        eventually(lambda: self.fleet.rabbitmq.consumers(queue) == 0, "nobody has its messages in hand")
        with self.fleet.app.connection_for_read() as connection:
            channel = connection.default_channel
            messages = list(iter(lambda: channel.basic_get(queue), None))
        eventually(lambda: self.fleet.count(queue) == len(messages), "what was looked at is back")
        return [message.properties["application_headers"]["id"] for message in messages]


def editor(tmp_path: Path, python: str) -> str:
    """Return an ``$EDITOR`` that runs Python on the ``waybill`` in the file."""
    script = tmp_path / f"{uuid.uuid4()}.py"
    script.write_text(
        "import json, pathlib, sys\nfile = pathlib.Path(sys.argv[1])\nwaybill = json.loads(file.read_text())\n"
        + (python or "sys.exit()")
        + "\nfile.write_text(json.dumps(waybill))\nimport os; os.utime(file, (1, 1))\n"
    )
    return f"{sys.executable} {script}"


def lines(file: Path) -> list[dict[str, Any]]:
    """Return the letters of an export."""
    return [json.loads(line) for line in file.read_text().splitlines()]
