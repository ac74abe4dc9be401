"""Dead letters in a file, one JSON object a line: bodies byte for byte, headers and properties as they were."""

import base64
import binascii
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from shared.deadletters.letters import QUEUES, DeadLetter, raw_body
from shared.deadletters.store import PROPERTIES, headers_of
from shared.errors import WaybillError

#: Queue, body, headers, properties.
Line = tuple[str, bytes, dict[str, Any], dict[str, str | None]]


class _LineSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    queue = fields.String(required=True, validate=validate.OneOf(QUEUES))
    body = fields.String(required=True)
    headers = fields.Dict(keys=fields.String(), required=True)
    properties = fields.Dict(keys=fields.String(), values=fields.String(allow_none=True), required=True)


_LINE = _LineSchema()


def write(file: Path, letters: Iterable[DeadLetter]) -> None:
    """Write letters to a new file that only its owner may read."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as lines:
            lines.writelines(json.dumps(_as_line(letter)) + "\n" for letter in letters)
            lines.flush()
            os.fsync(lines.fileno())  # what is dropped is nowhere else
    except OSError as error:
        raise WaybillError(f"{file}: {error.strerror}. Nothing was taken out; name another file.") from error


def load(file: Path) -> list[Line]:
    """Read what ``write`` wrote; raise ``WaybillError`` unless every line is a dead letter."""
    try:
        text = file.read_text()
    except (OSError, ValueError) as error:
        raise WaybillError(f"{file}: cannot be read ({error}). Name a file that `dlq export` wrote.") from error
    letters = [_parse(file, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not letters:
        raise WaybillError(f"{file}: no dead letters in it.")
    return letters


def _parse(file: Path, number: int, line: str) -> Line:
    try:
        loaded = _LINE.load(json.loads(line))
        body = base64.b64decode(loaded["body"], validate=True)
    except (ValidationError, json.JSONDecodeError, binascii.Error, RecursionError) as error:
        fault = ", ".join(error.messages_dict) if isinstance(error, ValidationError) else str(error)
        raise WaybillError(
            f"{file}: line {number} is no dead letter ({fault}). Nothing was imported; correct the line."
        ) from error
    return loaded["queue"], body, _with_times(loaded["headers"]), loaded["properties"]


def _as_line(letter: DeadLetter) -> dict[str, Any]:
    message = letter.message
    properties = {name: message.properties.get(name) for name in PROPERTIES}
    content = {"content_type": message.content_type, "content_encoding": message.content_encoding}
    return {
        "queue": letter.queue,
        "id": letter.id,
        "body": base64.b64encode(raw_body(message)).decode(),
        "headers": json.loads(json.dumps(headers_of(message), default=_plain)),
        "properties": {name: value for name, value in {**properties, **content}.items() if isinstance(value, str)},
    }


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _with_times(headers: dict[str, Any]) -> dict[str, Any]:
    """Make the times of death timestamps again, as the broker writes them."""
    deaths = headers.get("x-death")
    for death in deaths if isinstance(deaths, list) else []:
        try:
            death["time"] = datetime.fromisoformat(death["time"]).replace(tzinfo=UTC)
        except (KeyError, TypeError, ValueError):
            continue
    return headers
