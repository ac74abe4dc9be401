"""Alembic's entry to the notifications database."""

from shared.migrations import run
from workers.notifications.models import Base

run("notifications", Base.metadata)
