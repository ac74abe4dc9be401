"""Alembic's entry to the orders database."""

from shared.migrations import run
from workers.orders.webhooks import WebhookReceipt  # which has the other models imported

run("orders", WebhookReceipt.metadata)
