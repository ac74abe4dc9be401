"""Alembic's entry to the payments database."""

from shared.migrations import run
from workers.payments.models import Base

run("payments", Base.metadata)
