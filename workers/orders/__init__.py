"""The orders service; its worker is ``celery -A workers.orders worker``."""

from shared.messaging.app import app_on_first_use

__getattr__ = app_on_first_use(__name__, "orders", "orders")
