"""A process that cannot start says in one clear line which variable to correct; what it can do without, it does.

Starting takes seconds, so all cases are started together, some at a time, and each test looks at one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import urllib3
from pytest_celery import CeleryTestNode

from shared.contracts.queues import EVENTS_QUEUE, Queue
from stacks.processes import free_port, poll, port_taken
from tests.integration.nodes import Fleet
from tests.support import new_body

AT_ONCE = 3
SECONDS = 60

# By process: what it cannot start without, and how it is reached.
UNREACHABLE = {
    "BROKER_URL": "amqp://waybill:secret@127.0.0.1:{port}/waybill",
    "REDIS_URL": "redis://:secret@127.0.0.1:{port}/0",
    "PAYMENTS_DATABASE_URL": "postgresql+psycopg2://waybill:secret@127.0.0.1:{port}/waybill",
    "ORDERS_DATABASE_URL": "postgresql+psycopg2://waybill:secret@127.0.0.1:{port}/waybill",
}
NEEDED = {
    "payments": ("BROKER_URL", "PAYMENTS_DATABASE_URL"),
    "recorder": ("BROKER_URL", "ORDERS_DATABASE_URL"),
    "beat": ("BROKER_URL",),
    "api": ("ORDERS_DATABASE_URL",),
}
USEFUL = {
    "payments": ("REDIS_URL",),
    "recorder": ("REDIS_URL",),
    "beat": ("REDIS_URL",),
    "api": ("BROKER_URL", "REDIS_URL"),
}
WRONG = {
    "WORKER_CONCURRENCY": "many",
    "BROKER_URL": "http://localhost",
    "PORT": "70000",
    "LOG_FORMAT": "xml",
    "REDIS_URL": "localhost:6379",
}
PAIRS_NEEDED = [(name, variable) for name, variables in NEEDED.items() for variable in variables]
PAIRS_USEFUL = [(name, variable) for name, variables in USEFUL.items() for variable in variables]
PAIRS_WRONG = [("payments", variable) for variable in WRONG] + [(name, "PORT") for name in ("recorder", "beat", "api")]


@dataclass
class Case:
    """A process started with one variable changed."""

    node: CeleryTestNode
    code: int | None = None
    log: str = ""
    extra: dict[str, object] = field(default_factory=dict)

    @property
    def last_line(self) -> str:
        """What it said last."""
        return (self.log.strip().splitlines() or [""])[-1]


Cases = dict[tuple[str, str, str], Case]


@pytest.fixture(scope="module")
def cases(fleet: Fleet) -> Iterator[Cases]:
    """Every case, run."""
    wanted = {("needed", *pair): UNREACHABLE[pair[1]] for pair in PAIRS_NEEDED}
    wanted |= {("useful", *pair): UNREACHABLE[pair[1]] for pair in PAIRS_USEFUL}
    wanted |= {("wrong", *pair): WRONG[pair[1]] for pair in PAIRS_WRONG}
    fleet.declare()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = pool.map(lambda item: _run(fleet, *item[0], item[1].format(port=free_port())), wanted.items())
        yield dict(zip(wanted, done, strict=True))


@pytest.mark.parametrize(("name", "variable"), PAIRS_NEEDED)
def test_a_process_ends_without_what_it_needs(cases: Cases, name: str, variable: str) -> None:
    """After START_TIMEOUT: one line with the variable's name, the password masked, no traceback, exit code not 0."""
    case = cases["needed", name, variable]
    assert case.code not in (0, None), case.log
    assert f"{variable}: cannot reach" in case.last_line, case.log
    assert "Traceback" not in case.log
    assert "secret" not in case.log


@pytest.mark.parametrize(("name", "variable"), PAIRS_USEFUL)
def test_a_process_goes_on_without_what_it_can_miss(cases: Cases, name: str, variable: str) -> None:
    """One warning with the variable's name and what the consequence is, no traceback, and it works."""
    case = cases["useful", name, variable]
    warnings = [line for line in case.log.splitlines() if '"unreachable"' in line and variable in line]
    assert warnings, case.log
    assert '"effect"' in warnings[0]
    assert case.code is None, case.log
    assert "Traceback" not in case.log
    assert "secret" not in case.log


@pytest.mark.parametrize(("name", "variable"), PAIRS_WRONG)
def test_a_wrong_variable_ends_a_process_at_once(cases: Cases, name: str, variable: str) -> None:
    """One line with the variable's name, no traceback, exit code not 0."""
    case = cases["wrong", name, variable]
    assert case.code not in (0, None), case.log
    assert variable in case.last_line, case.log
    assert "Traceback" not in case.log


def test_the_api_takes_orders_while_the_broker_is_away(cases: Cases) -> None:
    """Stored and answered with 202; the sweeper will publish it."""
    assert cases["useful", "api", "BROKER_URL"].extra["status"] == 202


def test_a_database_that_was_never_migrated_names_the_command(fleet: Fleet) -> None:
    """The process says which command brings the schema."""
    url = fleet.postgres.create_databases(["never_migrated"])["never_migrated"]
    node = fleet.node("payments", START_TIMEOUT="1", PAYMENTS_DATABASE_URL=url)
    node.container.start()
    assert node.container.process.wait(SECONDS) not in (0, None)
    last = node.logs().strip().splitlines()[-1]
    assert "PAYMENTS_DATABASE_URL" in last
    assert "alembic -n payments upgrade head" in last


def _run(fleet: Fleet, kind: str, name: str, variable: str, value: str) -> Case:
    """Start a process and let it end, or do its work if it is expected to."""
    extra = {"START_TIMEOUT": "1", "SWEEP_EVERY": "0.2", variable: value}
    if name == "api" and variable != "PORT":
        extra["PORT"] = str(free_port())
    node = fleet.node(name, **extra)
    node.container.process.log = node.container.process.log.with_name(f"{kind}-{name}-{variable}.log")
    case = Case(node)
    node.container.start()
    if kind == "useful":
        assert poll(_at_work(fleet, name, node, extra), SECONDS), node.logs()
        if name == "api":
            url = f"http://127.0.0.1:{extra['PORT']}/v1/orders"
            case.extra["status"] = urllib3.request("POST", url, json=new_body(), retries=False, timeout=20).status
        case.code = None if node.container.process.running else node.container.process.wait(1)
        node.kill()
    else:
        case.code = node.container.process.wait(SECONDS)
    case.log = node.logs()
    return case


def _at_work(fleet: Fleet, name: str, node: CeleryTestNode, extra: dict[str, str]) -> Callable[[], bool]:
    """The condition under which a process does its work, or has ended."""
    works: dict[str, Callable[[], bool]] = {
        "api": lambda: port_taken(int(extra["PORT"])),
        "beat": lambda: fleet.count(Queue.ORDERS) > 0,
        "payments": lambda: fleet.rabbitmq.consumers(Queue.PAYMENTS) > 0,
        "recorder": lambda: fleet.rabbitmq.consumers(EVENTS_QUEUE) > 0,
    }
    return lambda: works[name]() or not node.container.process.running
