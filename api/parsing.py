"""Read a request's body: whatever no JSON parser takes is the client's mistake."""

from typing import Any

from flask_smorest import Blueprint
from webargs.flaskparser import FlaskParser


class _Parser(FlaskParser):
    def load_json(self, req: Any, schema: Any) -> Any:
        """Parse; too deep a nesting and too long a number end in other errors than bad syntax does."""
        try:
            return super().load_json(req, schema)
        except (RecursionError, ValueError) as error:
            self._handle_invalid_json_error(error, req)  # type: ignore[arg-type]  # any error serves as the cause


class StrictBlueprint(Blueprint):  # type: ignore[misc]  # flask-smorest ships no types
    """A blueprint whose arguments are read by our parser."""

    ARGUMENTS_PARSER = _Parser()
