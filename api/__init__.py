"""The HTTP API: parses, stores, starts the chain, answers. No business rules."""

from typing import Any

from celery import Celery
from flask import Flask

from api import (
    admission,
    auth,
    compat,
    correlation,
    documentation,
    errors,
    health,
    limits,
    orders,
    parsing,
    security,
    waiting,
    webhooks,
)
from api.dispatcher import Dispatcher
from shared.messaging.app import create_app as create_celery_app
from shared.settings import get_settings


def create_app(celery: Celery | None = None, **overrides: Any) -> Flask:
    """Return the Flask application.

    ``celery`` is the process's Celery app where it has one already; ``overrides`` are Flask settings. Raises
    ``ConfigurationError`` without a key that tokens are checked by.
    """
    app = Flask("api", static_folder=None)
    app.config.update(
        API_TITLE="Waybill",
        API_VERSION="v1",
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
        MAX_CONTENT_LENGTH=get_settings().api_max_bytes,
        **documentation.SETTINGS,
        **overrides,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions["dispatcher"] = Dispatcher(celery or create_celery_app("api"))
    correlation.register(app)
    security.register(app)
    api = documentation.DescribedApi(app)
    errors.register(app)
    auth.register(app, api)
    limits.register(app)
    admission.register(app)
    parsing.register(app)
    health.register(app)
    waiting.register(app)
    compat.register(app)
    for blueprint in (orders.blueprint, compat.blueprint, webhooks.blueprint):
        api.register_blueprint(blueprint)
    api.describe_probes()
    app.register_blueprint(documentation.blueprint)
    return app
