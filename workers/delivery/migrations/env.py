"""Alembic's entry to the delivery database."""

from shared.migrations import run
from workers.delivery.models import Base

run("delivery", Base.metadata)
