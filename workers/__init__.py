"""The whole fleet: ``celery -A workers`` for the command line, beat and Flower."""

from shared.messaging.app import app_on_first_use
from shared.settings import SERVICES

__getattr__ = app_on_first_use(__name__, "workers", *SERVICES)
