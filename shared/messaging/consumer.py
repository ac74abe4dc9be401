"""The workers' consumer: nothing undecodable or malformed is lost or kills a worker, it goes to the dead letters.

Celery acknowledges, and so loses, a message that it cannot decode, and some malformed ones end the worker process.
This consumer looks at every message before Celery does.
"""

import json
from collections.abc import Callable, Container
from typing import Any, ClassVar

from celery.worker.consumer import Consumer
from kombu import Message
from marshmallow import INCLUDE, Schema, ValidationError, fields, validate

from shared.contracts.queues import TaskName
from shared.errors import MalformedMessage
from shared.telemetry.logs import get_logger

MAX_BYTES = 2_000_000  # bytes of a body; the API takes less than half of that
_PARTS = 3
_LONGEST_CHAIN = 50
_MAX_RETRIES = 10_000
_CELERY_OWN = "celery."  # every app has them, nobody here sends them, and they would run as tasks of ours

log = get_logger(__name__)


class _HeadersSchema(Schema):
    """The headers of Celery's protocol 2 that it would stumble over."""

    class Meta:
        unknown = INCLUDE

    id = fields.String(required=True, validate=validate.Length(min=1, max=255))
    task = fields.String(required=True)
    retries = fields.Integer(strict=True, validate=validate.Range(min=0, max=_MAX_RETRIES))
    timelimit = fields.List(fields.Float(allow_none=True), allow_none=True, validate=validate.Length(equal=2))
    root_id = fields.String(allow_none=True)
    parent_id = fields.String(allow_none=True)
    group = fields.Raw(allow_none=True, validate=validate.Equal(None))
    group_index = fields.Integer(allow_none=True)
    shadow = fields.String(allow_none=True)
    lang = fields.String(allow_none=True)
    origin = fields.String(allow_none=True)
    argsrepr = fields.String(allow_none=True)
    kwargsrepr = fields.String(allow_none=True)
    ignore_result = fields.Boolean(allow_none=True)
    replaced_task_nesting = fields.Integer(strict=True, allow_none=True)
    stamped_headers = fields.List(fields.String(), allow_none=True)
    stamps = fields.Dict(allow_none=True)
    eta = fields.DateTime(format="iso", allow_none=True)
    expires = fields.DateTime(format="iso", allow_none=True)


class _LinkSchema(Schema):
    """One step of the chain: a task of ours, and no say in where it goes."""

    class Meta:
        unknown = INCLUDE

    task = fields.String(required=True, validate=validate.OneOf(list(map(str, TaskName))))
    args = fields.List(fields.Raw(), validate=validate.Length(max=0))
    kwargs = fields.Dict(validate=validate.Length(max=0))
    options = fields.Dict(validate=validate.Length(max=0))


_nothing = validate.Equal(None, error="Nobody here sends these.")


class _EmbedSchema(Schema):
    """The third part of a body: what comes after the task. Nothing but a chain is ever sent."""

    class Meta:
        unknown = INCLUDE

    chain = fields.List(fields.Nested(_LinkSchema), allow_none=True, validate=validate.Length(max=_LONGEST_CHAIN))
    callbacks = fields.Raw(allow_none=True, validate=_nothing)
    errbacks = fields.Raw(allow_none=True, validate=_nothing)
    chord = fields.Raw(allow_none=True, validate=_nothing)


_HEADERS, _EMBED = _HeadersSchema(), _EmbedSchema()


def defect(message: Message, tasks: Container[str]) -> str | None:
    """Return why a message can never be processed as it is, None when it can; never its contents."""
    if len(message.body or b"") > MAX_BYTES:
        return f"body: larger than {MAX_BYTES} bytes"
    try:
        headers = _HEADERS.load(message.headers)
        if headers["task"] not in tasks or headers["task"].startswith(_CELERY_OWN):
            return "headers: unknown task"
        return _defect_of_body(message.payload)
    except ValidationError as error:
        return str(MalformedMessage("headers", error.messages_dict))
    except Exception as error:
        return f"body: {type(error).__name__}"


def _defect_of_body(body: Any) -> str | None:
    if not isinstance(body, list) or len(body) != _PARTS:
        return "body: not [args, kwargs, embed]"
    args, kwargs, embed = body
    if not (isinstance(args, list) and isinstance(kwargs, dict) and isinstance(embed, dict)):
        return "body: not [list, mapping, mapping]"
    try:
        _EMBED.load(embed)
        json.dumps(body)  # as deep as it decodes it must encode, to travel on
    except ValidationError as error:
        return str(MalformedMessage("embed", error.messages_dict))
    return None


class CarefulConsumer(Consumer):  # type: ignore[misc]  # Celery ships no types
    """Celery's consumer behind a check of each message, without what the fleet has no use for.

    Workers do not talk to each other (mingle, gossip), so they need no right to send remote control commands; delay
    queues are part of the topology that is declared before.
    """

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """Celery's steps without its own declaration of the delay queues."""

        default_steps: ClassVar = [
            step for step in Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        ]

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        alone = {"without_mingle": True, "without_gossip": True}
        super().__init__(*args, worker_options={**(worker_options or {}), **alone}, **kwargs)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """Return what handles a message that was received."""
        handle = super().create_task_handler(*args, **kwargs)
        broker_delays = self.connection.transport.driver_type == "amqp"

        def on_task_received(message: Message) -> None:
            if reason := defect(message, self.strategies):
                self.refuse(message, reason)
                return
            message.headers["expires"] = None  # an expired message would be acknowledged, and lost
            if broker_delays:
                message.headers["eta"] = None  # it waited in the broker; here it would hold a prefetch slot
            handle(message)

        return on_task_received

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Keep what cannot even be unpacked."""
        self.refuse(message, f"body: {type(exc).__name__}")

    def refuse(self, message: Message, reason: str) -> None:
        """Send a message to the dead letters."""
        log.warning("message_refused", reason=reason, queue=(message.delivery_info or {}).get("routing_key"))
        message.reject_log_error(log, self.connection_errors)
