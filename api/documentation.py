"""Swagger UI at ``/docs``, its files served from here: no page of ours loads code from elsewhere."""

from importlib.resources import files

from flask import Blueprint, Response, send_from_directory

SETTINGS = {"OPENAPI_SWAGGER_UI_PATH": "docs", "OPENAPI_SWAGGER_UI_URL": "/docs/"}
_FILES = str(files("flask_swagger_ui") / "dist")

blueprint = Blueprint("documentation", __name__)


@blueprint.get("/docs/<name>")
def file(name: str) -> Response:
    """Serve a file of Swagger UI."""
    return send_from_directory(_FILES, name, max_age=3600)
