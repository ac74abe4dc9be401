"""gunicorn's settings, from ``API_HOST``, ``PORT``, ``WEB_CONCURRENCY`` (processes) and ``WEB_THREADS``."""

import logging
import sys
from typing import Any

from api.compat import completion
from api.tokens import tokens_from
from shared.database import forget_connections
from shared.errors import ConfigurationError
from shared.process import settings_or_exit, start_process

_settings = settings_or_exit("api")
try:
    tokens_from(_settings)  # before a worker would fail for want of a key, again and again
    completion(_settings)
except ConfigurationError as error:
    sys.exit(f"api: {error}")
bind = f"{_settings.api_host}:{_settings.port}"
worker_class = "gthread"
workers = _settings.web_concurrency
threads = _settings.web_threads
timeout = 60  # seconds
graceful_timeout = 30
keepalive = 15
secure_scheme_headers = {}  # who may speak for the client is TRUSTED_PROXIES' to say
accesslog = None  # the API logs its own lines, with the correlation id
control_socket_disable = True  # nobody here uses it, and it would write to the home directory


def on_starting(_server: Any) -> None:
    """Look at what the API needs, once, before the workers are forked."""
    start_process("api", databases=["orders"], broker=False)
    forget_connections()
    for name in ("gunicorn.error", "gunicorn.access"):  # one format for every line
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


def post_worker_init(worker: Any) -> None:
    """Prepare a forked worker."""
    start_process("api", broker=False)
    worker.wsgi.extensions["dispatcher"].prepare()
