"""The notifications service; its worker is ``celery -A workers.notifications worker``."""

from shared.messaging.app import app_on_first_use

__getattr__ = app_on_first_use(__name__, "notifications", "notifications")
