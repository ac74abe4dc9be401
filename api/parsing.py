"""Read a request: whatever no JSON parser takes is the client's mistake, and unknown fields are refused everywhere."""

from http import HTTPStatus
from typing import Any

from flask import request
from flask_smorest import Blueprint, abort
from marshmallow import RAISE
from webargs.flaskparser import FlaskParser

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


class StrictBlueprint(Blueprint):  # type: ignore[misc]  # flask-smorest ships no types
    """A blueprint of resources in JSON, whose arguments are read by our parser."""

    ARGUMENTS_PARSER = _Parser()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before_request(_refuse_other_formats)


def _refuse_other_formats() -> None:
    """Answer 406 before anything is done for a client that could not read the answer."""
    if request.accept_mimetypes and not request.accept_mimetypes.best_match(_WE_SPEAK):
        abort(HTTPStatus.NOT_ACCEPTABLE)
