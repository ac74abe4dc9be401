"""The delivery service; its worker is ``celery -A workers.delivery worker``."""

from shared.messaging.app import app_on_first_use

__getattr__ = app_on_first_use(__name__, "delivery", "delivery")
