"""Alembic's entry to the orders database."""

from shared.migrations import run
from workers.orders.models import Base

run("orders", Base.metadata)
