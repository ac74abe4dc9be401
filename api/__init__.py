"""The HTTP API: parses, stores, starts the chain, answers. No business rules."""

from typing import Any

from celery import Celery
from flask import Flask
from flask_smorest import Api

from api import correlation, errors, health, orders
from api.dispatcher import Dispatcher
from shared.messaging.app import create_app as create_celery_app
from shared.settings import get_settings


def create_app(celery: Celery | None = None, **overrides: Any) -> Flask:
    """Return the Flask application.

    ``celery`` is the process's Celery app where it has one already; ``overrides`` are Flask settings.
    """
    app = Flask("api", static_folder=None)
    app.config.update(
        API_TITLE="Waybill",
        API_VERSION="v1",
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
        MAX_CONTENT_LENGTH=get_settings().api_max_bytes,
        **overrides,
    )
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.extensions["dispatcher"] = Dispatcher(celery or create_celery_app("api"))
    correlation.register(app)
    api = Api(app)
    errors.register(app)
    api.register_blueprint(orders.blueprint)
    app.register_blueprint(health.blueprint)
    return app
