"""What the fleet tells about itself: one correlation id everywhere, ids but no personal data, Flower masked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from pytest_celery import CeleryTestSetup, CeleryWorkerCluster

from shared.contracts.queues import AUDIT_STREAM, Queue, TaskName
from tests.integration.nodes import Fleet, LocalWorker, eventually
from tests.support import new_body

CORRELATION = "shop-4711.a_b"
PERSONAL = ("tok_ok", "cus_1", "Main St 1", "10115", "Berlin")
PROCESSES = ("api", *map(str, Queue), "recorder", "flower")
FLOWER = {"FLOWER_UNAUTHENTICATED_API": "true"}


@pytest.fixture(scope="module")
def order(fleet: Fleet) -> Iterator[dict[str, Any]]:
    """An order that went through the whole fleet, Flower watching."""
    with fleet.running(*PROCESSES, **FLOWER):
        eventually(lambda: _flower(fleet, "workers?refresh=1").keys() >= _hostnames(fleet), "Flower knows the workers")
        headers = {"X-Correlation-ID": CORRELATION}
        answer = urllib3.request("POST", f"{fleet.api_url}/v1/orders", json=new_body(), headers=headers, retries=False)
        assert answer.status == 202
        assert answer.headers["X-Correlation-ID"] == CORRELATION
        location = fleet.api_url + answer.headers["Location"]
        eventually(lambda: _get(location)["status"] == "COMPLETED", "the order is completed")
        eventually(lambda: "customer.notified" in str(_get(f"{location}/events")), "the customer is told")
        yield _get(location)


def test_the_correlation_id_is_on_every_log_line_of_the_order(fleet: Fleet, order: dict[str, Any]) -> None:
    """From the API through each worker; the lines are JSON, with order id and static event names."""
    for name in ("api", "payments", "delivery", "notifications"):
        lines = [line for line in _lines(fleet, name) if line.get("order_id") == order["id"]]
        assert lines, name
        assert {line["correlation_id"] for line in lines} == {CORRELATION}, name


def test_the_correlation_id_is_on_every_event(fleet: Fleet, order: dict[str, Any]) -> None:
    """The audit stream, which has them all, shows it on each."""
    assert order["correlation_id"] == CORRELATION

    def of_the_order(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [event for event in events if event["subject"] == order["id"]]

    events = of_the_order(fleet.replay(AUDIT_STREAM, lambda found: len(of_the_order(found)) >= 5))
    assert {event["correlationid"] for event in events} == {CORRELATION}


def test_no_log_line_holds_personal_data(fleet: Fleet, order: dict[str, Any]) -> None:
    """Ids only: no token, address or customer in any log."""
    for node in fleet.nodes:
        assert [word for word in PERSONAL if word in node.logs()] == [], node.name()


def test_flower_lists_the_workers_and_masks_the_tasks(fleet: Fleet, order: dict[str, Any]) -> None:
    """Each step by its name and the order id; nowhere a token, an address or a customer."""
    steps = {TaskName.CHARGE, TaskName.ASSIGN, TaskName.NOTIFY}
    eventually(lambda: {task["name"] for task in _flower(fleet, "tasks").values()} >= steps, "Flower saw every step")
    tasks = _flower(fleet, "tasks")
    assert {task["args"] for task in tasks.values() if task["name"] in steps} == {f"({order['id']})"}
    details = [_flower(fleet, f"task/info/{task_id}") for task_id in tasks]
    assert [word for word in PERSONAL if word in json.dumps([tasks, details])] == []


def test_the_fleet_is_a_setup_of_pytest_celery(fleet: Fleet, order: dict[str, Any]) -> None:
    """Its nodes answer as pytest-celery's setup asks: processes up, remote control answers from each worker."""
    workers = CeleryWorkerCluster(*(node for node in fleet.nodes if isinstance(node, LocalWorker)))
    setup = CeleryTestSetup(workers, fleet.broker_cluster, None, fleet.app)
    assert setup.ready(docker=True, control=True)
    assert len(setup) == len(Queue) + 1
    assert fleet.store_cluster.ready()
    assert {name for answer in fleet.app.control.ping(timeout=2) for name in answer} >= _hostnames(fleet)
    assert {worker.worker_queue for worker in setup.worker_cluster} == set(Queue)


def _hostnames(fleet: Fleet) -> set[str]:
    return {node.hostname() for node in fleet.nodes if isinstance(node, LocalWorker)}


def _get(url: str) -> Any:
    answer = urllib3.request("GET", url, retries=False, timeout=5)
    assert answer.status == 200, answer.data
    return answer.json()


def _flower(fleet: Fleet, path: str) -> Any:
    url = f"http://127.0.0.1:{fleet.stack.ports.flower}/api/{path}"
    answer = urllib3.request("GET", url, retries=False, timeout=5)
    return answer.json() if answer.status == 200 else {}


def _lines(fleet: Fleet, name: str) -> list[dict[str, Any]]:
    """The JSON lines of a process's log."""
    text = next(node.logs() for node in fleet.nodes if node.name() == name)
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
