"""The description of the API (OpenAPI), and Swagger UI at ``/docs``: no page of ours loads code from elsewhere.

What follows from what an operation takes is described here once; ``operation``, ``places`` and ``keyed`` say the rest.
``python -m api.contract`` writes it to ``docs/openapi.json``.
"""

from collections.abc import Callable
from http import HTTPStatus
from importlib.resources import files
from typing import Any, TypeVar

from flask import Blueprint as FlaskBlueprint
from flask import Response, send_from_directory
from flask_smorest import Api, Blueprint
from marshmallow import Schema, fields

from api.errors import MEDIA_TYPE
from api.schemas import OrderSchema, Shown

SETTINGS = {
    "OPENAPI_SWAGGER_UI_PATH": "docs",
    "OPENAPI_SWAGGER_UI_URL": "/docs/",
    "API_SPEC_OPTIONS": {
        "info": {
            "description": "Takes orders and drives each one through payment, delivery and notification. Whoever sends "
            "`X-Correlation-ID` (letters, digits, dots, dashes; at most 64) finds it in the answer and in our logs."
        }
    },
}
_FILES = str(files("flask_swagger_ui") / "dist")
#: By status: the name of the answer, what it says, the headers that are always on it and those that may be.
_REFUSALS: dict[int, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    400: ("BAD_REQUEST", "`VALIDATION_FAILED`: `errors` names each field that is wrong.", (), ()),
    401: ("UNAUTHORIZED", "No token, or one that does not hold.", ("WWW-Authenticate",), ()),
    402: ("PAYMENT_REQUIRED", "`PAYMENT_FAILED`: the order is undone.", ("Location",), ("Idempotent-Replay",)),
    403: ("FORBIDDEN", "The token lacks the scope.", (), ("WWW-Authenticate",)),
    404: ("NOT_FOUND", "There is no such order for this caller.", (), ()),
    406: ("NOT_ACCEPTABLE", "The client takes no JSON.", (), ()),
    409: (
        "CONFLICT",
        "The `Idempotency-Key` came with another request (`IDEMPOTENCY_CONFLICT`), or its first one is under way "
        "(`IDEMPOTENCY_IN_PROGRESS`).",
        (),
        ("Retry-After",),
    ),
    413: ("BODY_TOO_LARGE", "`BODY_TOO_LARGE`: see `API_MAX_BYTES`.", (), ()),
    415: ("UNSUPPORTED_MEDIA_TYPE", "The body is not declared as JSON.", (), ()),
    422: (
        "UNPROCESSABLE",
        "The order cannot be fulfilled as it is; it is undone.",
        ("Location",),
        ("Idempotent-Replay",),
    ),
    429: ("TOO_MANY_REQUESTS", "The caller's limit is reached.", ("Retry-After",), ()),
    503: (
        "SERVICE_UNAVAILABLE",
        "Not now; or the order is parked, and `order` shows it.",
        ("Retry-After",),
        ("Location",),
    ),
}
_HEADERS = {
    "Location": ({"type": "string", "format": "uri-reference"}, "Where the order is found."),
    "Idempotent-Replay": ({"type": "string", "enum": ["true"]}, "This is the answer to an earlier request."),
    "Preference-Applied": ({"type": "string"}, "What was done of `Prefer`."),
    "Retry-After": ({"type": "integer", "minimum": 1}, "Seconds until it may work."),
    "WWW-Authenticate": ({"type": "string"}, "What is wanted (RFC 6750)."),
    "RateLimit-Limit": ({"type": "integer"}, "How many requests the caller's limit allows."),
    "RateLimit-Remaining": ({"type": "integer", "minimum": 0}, "How many of them are left."),
    "RateLimit-Reset": ({"type": "integer", "minimum": 1}, "Seconds until there are more."),
}
_LIMIT_HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
_KEY = {
    "in": "header",
    "name": "Idempotency-Key",
    "description": "Names the request: repeated with the same key it is answered again and done once.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
_PREFER = {
    "in": "header",
    "name": "Prefer",
    "description": "`wait=N` for the outcome, for N seconds (at most 30), or `respond-async` (RFC 7240).",
    "schema": {"type": "string"},
    "examples": {"wait": {"value": "wait=2"}, "follow": {"value": "respond-async"}},
}

blueprint = FlaskBlueprint("documentation", __name__)
View = TypeVar("View", bound=Callable[..., Any])


class FieldErrorSchema(Shown):
    """What is wrong with one field."""

    field = fields.String(metadata={"description": "Its path, `items.0.sku`."})
    message = fields.String()


class ProblemSchema(Shown):
    """A problem document (RFC 9457)."""

    type = fields.String()
    title = fields.String()
    status = fields.Integer()
    detail = fields.String(metadata={"description": "The code of the problem, to be read by programs."})
    instance = fields.String()
    errors = fields.List(fields.Nested(FieldErrorSchema), metadata={"x-optional": True})
    order = fields.Nested(OrderSchema, metadata={"x-optional": True})


class DescribedApi(Api):  # type: ignore[misc]  # flask-smorest ships no types
    """flask-smorest with our error documents, and without a default answer: each status is described."""

    DEFAULT_ERROR_RESPONSE_NAME = None

    def _register_responses(self) -> None:
        for name, (schema, description) in _HEADERS.items():
            self.spec.components.header(name, {"schema": schema, "description": description}, lazy=True)
        for status, (name, description, always, _) in _REFUSALS.items():
            response = refusal(description)
            headers = {header: _header(header) for header in _headers_of(status)}
            for header in always:
                headers[header] = {**_header(header), "required": True}
            self.spec.components.response(name, {**response, "headers": headers} if headers else response, lazy=True)

    def describe_probes(self) -> None:
        """Describe what ``api.health`` answers: neither authenticated nor limited."""
        ok = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        checks = {"type": "object", "additionalProperties": {"type": "string", "enum": ["ok", "unreachable"]}}
        ready = {"type": "object", "properties": {**ok["properties"], "checks": checks}, "required": ["ok", "checks"]}  # type: ignore[dict-item]
        self.spec.tag({"name": "probes", "description": "Is it up?"})
        for path, name in {"/livez": "live", "/health/": "health"}.items():
            self._probe(path, name, "Answer that the process is up; asks nobody.", {200: ok})
        self._probe(
            "/readyz", "ready", "Answer whether orders can be taken, and what is reached.", {200: ready, 503: ready}
        )

    def _probe(self, path: str, name: str, summary: str, answers: dict[int, Any]) -> None:
        responses = {
            str(status): {
                "description": HTTPStatus(status).phrase,
                "content": {"application/json": {"schema": schema}},
            }
            for status, schema in answers.items()
        }
        get = {"operationId": name, "summary": summary, "tags": ["probes"], "responses": responses}
        rule = next(rule for rule in self._app.url_map.iter_rules() if rule.rule == path)
        self.spec.path(rule=rule, operations={"get": get})


def refusal(description: str) -> dict[str, Any]:
    """Return the description of an answer that is a problem document."""
    return {"description": description, "content": {MEDIA_TYPE: {"schema": ProblemSchema}}}


def operation(name: str, *refusals: int) -> Callable[[View], View]:
    """Name an operation, and what it refuses requests with besides what follows from what it takes."""
    return Blueprint.doc(operationId=name, responses=_named(refusals))  # type: ignore[no-any-return]


def keyed(name: str, shown: type[Schema], *refusals: int, suffix: str = "") -> Callable[[View], View]:
    """Describe an operation that takes an ``Idempotency-Key``: 202 and how it goes on, 200 the next time."""
    answers: dict[Any, Any] = {
        202: _answer("On its way; follow it at `Location`.", shown, suffix),
        200: _answer("The answer to an earlier request with this key.", shown, suffix, always=("Idempotent-Replay",)),
        **_named((409, *refusals)),
    }
    return Blueprint.doc(operationId=name + suffix, parameters=[_KEY], responses=answers)  # type: ignore[no-any-return]


def places(shown: type[Schema], suffix: str = "") -> Callable[[View], View]:
    """Describe the placing of an order: whoever waits is told the outcome."""

    def decorator(view: View) -> View:
        done = {201: _answer("It was waited for and is completed.", shown, suffix)}
        waited = Blueprint.doc(parameters=[_KEY, _PREFER], responses={**done, **_named((402, 422))})
        return waited(keyed("placeOrder", shown, suffix=suffix)(view))  # type: ignore[no-any-return]

    return decorator


def complete(doc: dict[str, Any], doc_info: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Add to an operation what follows from what it takes; flask-smorest calls it for each one."""
    taking = (413, 415) if "requestBody" in doc else ()
    doc.setdefault("responses", {}).update(_named((406, 503, *taking)))
    said = doc_info.get("manual_doc", {}).get("responses", {})
    if "429" in said:
        for status, response in {**doc["responses"], **said}.items():
            if int(status) < HTTPStatus.BAD_REQUEST:
                headers = response.setdefault("headers", {})
                headers.update({name: name for name in _LIMIT_HEADERS})  # by reference
    return doc


def _named(statuses: tuple[int, ...]) -> dict[int, str]:
    return {status: _REFUSALS[status][0] for status in statuses}


def _header(name: str) -> dict[str, Any]:
    schema, description = _HEADERS[name]
    return {"schema": schema, "description": description}


def _headers_of(status: int) -> tuple[str, ...]:
    _, _, always, maybe = _REFUSALS[status]
    return (*always, *maybe, *(_LIMIT_HEADERS if status == HTTPStatus.TOO_MANY_REQUESTS else ()))


def _answer(description: str, shown: type[Schema], suffix: str, always: tuple[str, ...] = ()) -> dict[str, Any]:
    """Describe an answer that shows an order, and where to go from it."""
    headers = {"Preference-Applied": _header("Preference-Applied")}
    for name in ("Location", *always):
        headers[name] = {**_header(name), "required": True}
    return {
        "description": description,
        "content": {"application/json": {"schema": shown}},
        "headers": headers,
        "links": {
            name: {"operationId": name + suffix, "parameters": {"order_id": "$response.body#/id"}}
            for name in ("getOrder", "cancelOrder", "listOrderEvents")
        },
    }


@blueprint.get("/docs/<name>")
def file(name: str) -> Response:
    """Serve a file of Swagger UI."""
    return send_from_directory(_FILES, name, max_age=3600)
