"""Real servers, started once; each test file works on a fleet of its own on them."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shared.contracts.waybill import Waybill
from stacks.local import LocalStack
from stacks.rabbitmq_container import ContainerRabbitMQ
from tests.integration import nodes
from tests.integration.desk import Desk

_numbers = itertools.count(1)
#: Names an image whose RabbitMQ takes the place of the installed one.
RABBITMQ_IMAGE = "TEST_RABBITMQ_IMAGE"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """RabbitMQ, Redis and PostgreSQL for the whole run; they end with this process."""
    stack = LocalStack(tmp_path_factory.mktemp("servers"), durable=False)
    if image := os.environ.get(RABBITMQ_IMAGE):
        old = stack.rabbitmq
        stack.rabbitmq = ContainerRabbitMQ(old.folder, old.port, image=image, durable=False, tied=True)
    try:
        stack.start_servers()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def fleet(servers: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[nodes.Fleet]:
    """A fresh virtual host and fresh databases, no process started."""
    number = next(_numbers)
    with nodes.fleet(servers, number, tmp_path_factory.mktemp(f"fleet{number}")) as fleet:
        yield fleet


@pytest.fixture
def desk(fleet: nodes.Fleet) -> Desk:
    """The dead-letter desk, no letter in any queue."""
    desk = Desk(fleet)
    desk.clear()
    return desk


@pytest.fixture
def new_waybill() -> Callable[..., Waybill]:
    """Make waybills that differ in the fields given."""
    return make_waybill


def make_waybill(**changes: Any) -> Waybill:
    """A waybill of a new order for a courier in the north, paid by a token that works."""
    fields: dict[str, Any] = {
        "order_id": str(uuid.uuid4()),
        "correlation_id": f"cor-{uuid.uuid4().hex[:12]}",
        "customer_id": "cus_1",
        "items": [{"sku": "pizza", "quantity": 2}],
        "amount_cents": 2590,
        "currency": "EUR",
        "payment_method": "tok_ok",
        "address": {"line1": "Main St 1", "city": "Berlin", "postal_code": "10115", "country": "DE", "area": "north"},
    }
    return Waybill(**{**fields, **changes})
