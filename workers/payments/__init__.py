"""The payments service; its worker is ``celery -A workers.payments worker``."""

from shared.messaging.app import app_on_first_use

__getattr__ = app_on_first_use(__name__, "payments", "payments")
