"""Read a request: whatever no JSON parser takes is the client's mistake, and unknown fields are refused everywhere."""

from http import HTTPStatus
from typing import Any

from flask import Flask, request
from flask_smorest import Blueprint, abort
from marshmallow import RAISE
from webargs.flaskparser import FlaskParser

from api import documentation
from api.errors import MEDIA_TYPE

_WE_SPEAK = ("application/json", MEDIA_TYPE)


class _Parser(FlaskParser):
    DEFAULT_VALIDATION_STATUS = HTTPStatus.BAD_REQUEST
    DEFAULT_UNKNOWN_BY_LOCATION = FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION | {"query": RAISE}

    def load_json(self, req: Any, schema: Any) -> Any:
        """Parse; too deep a nesting and too long a number end in other errors than bad syntax does."""
        if not req.is_json and req.get_data():
            abort(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        try:
            return super().load_json(req, schema)
        except (RecursionError, ValueError) as error:
            self._handle_invalid_json_error(error, req)  # type: ignore[arg-type]  # any error serves as the cause


def register(app: Flask) -> None:
    """Measure the bodies that ``app`` gets in chunks: they tell no length, and werkzeug cuts them without a word."""

    @app.before_request
    def _measure() -> None:
        limit = request.max_content_length
        if request.content_length is None and "Transfer-Encoding" in request.headers and limit is not None:
            request.max_content_length = limit + 1
            if len(request.get_data()) > limit:
                abort(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


class StrictBlueprint(Blueprint):  # type: ignore[misc]  # flask-smorest ships no types
    """A blueprint of resources in JSON, whose arguments are read by our parser."""

    ARGUMENTS_PARSER = _Parser()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before_request(_refuse_other_formats)
        self._prepare_doc_cbks.append(documentation.complete)


def _refuse_other_formats() -> None:
    """Answer 406 before anything is done for a client that could not read the answer."""
    if request.accept_mimetypes and not request.accept_mimetypes.best_match(_WE_SPEAK):
        abort(HTTPStatus.NOT_ACCEPTABLE)
