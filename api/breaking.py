"""What breaks a client: two descriptions of the API compared, each part in the direction in which it travels.

What is sent may be asked for less and allowed more; what is answered may only get more. The rules in words are in
``docs/adr/0010-versions-of-the-api.md``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
#: A limit of what is sent may only be raised, or lowered; None is no limit.
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")

Json = Mapping[str, Any]


def breaking(old: Json, new: Json) -> list[str]:
    """Return what a client of ``old`` cannot rely on any more in ``new``, one line each."""
    return list(_Comparison(old, new).run())


class _Comparison:
    """Two descriptions, compared in the direction in which each part travels."""

    def __init__(self, old: Json, new: Json) -> None:
        self._old, self._new = old, new
        self._seen: set[tuple[str, str, bool]] = set()  # pairs of named schemas, which may hold each other

    def run(self) -> Iterator[str]:
        schemes = [each.get("components", {}).get("securitySchemes", {}) for each in (self._old, self._new)]
        for name, scheme in schemes[0].items():
            if schemes[1].get(name) != scheme:
                yield f"security scheme {name}: removed or changed"
        for path, item in self._old.get("paths", {}).items():
            now = self._new.get("paths", {}).get(path, {})
            for method in filter(item.__contains__, _METHODS):
                where = f"{method.upper()} {path}"
                if method in now:
                    shared = [each.get("parameters", []) for each in (item, now)]
                    yield from self._operation(where, item[method], now[method], *shared)
                else:
                    yield f"{where}: removed"

    def _operation(self, where: str, old: Json, new: Json, old_more: list[Any], new_more: list[Any]) -> Iterator[str]:
        if old.get("operationId") != new.get("operationId"):
            yield f"{where}: operationId changed"
        ways = [each.get("security", [{}]) for each in (old, new)]
        if not all(any(_opens(way, needed) for needed in ways[1]) for way in ways[0]):
            yield f"{where}: needs another authorization"
        parameters = [
            {(each["in"], each["name"]): each for each in map(resolve, [*more, *operation.get("parameters", [])])}
            for operation, more, resolve in ((old, old_more, self._was), (new, new_more, self._is))
        ]
        yield from self._parameters(where, *parameters)
        yield from self._body(where, self._was(old.get("requestBody", {})), self._is(new.get("requestBody", {})))
        yield from self._responses(where, old.get("responses", {}), new.get("responses", {}))

    def _parameters(self, where: str, old: Mapping[Any, Json], new: Mapping[Any, Json]) -> Iterator[str]:
        for key, parameter in new.items():
            if parameter.get("required") and not old.get(key, {}).get("required"):
                yield f"{where}: parameter {key[1]} became required"
        for key, parameter in old.items():
            if key not in new:
                yield f"{where}: parameter {key[1]} removed"
            else:
                name = f"{where}: parameter {key[1]}"
                yield from self._schema(name, parameter.get("schema", {}), new[key].get("schema", {}), sent=True)

    def _body(self, where: str, old: Json, new: Json) -> Iterator[str]:
        if new.get("required") and not old.get("required"):
            yield f"{where}: body became required"
        yield from self._content(f"{where}: body", old, new, sent=True)

    def _responses(self, where: str, old: Json, new: Json) -> Iterator[str]:
        for status, response in old.items():
            here = f"{where}: answer {status}"
            if status not in new:
                yield f"{here} removed"
                continue
            was, now = self._was(response), self._is(new[status])
            yield from self._content(here, was, now, sent=False)
            headers = [each.get("headers", {}) for each in (was, now)]
            for name, header in headers[0].items():
                if name not in headers[1]:
                    yield f"{here}: header {name} removed"
                elif self._was(header).get("required") and not self._is(headers[1][name]).get("required"):
                    yield f"{here}: header {name} became optional"
            for name in was.get("links", {}):
                if name not in now.get("links", {}):
                    yield f"{here}: link {name} removed"

    def _content(self, where: str, old: Json, new: Json, *, sent: bool) -> Iterator[str]:
        for kind, media in old.get("content", {}).items():
            if kind not in new.get("content", {}):
                yield f"{where}: {kind} removed"
            else:
                yield from self._schema(
                    where, media.get("schema", {}), new["content"][kind].get("schema", {}), sent=sent
                )

    def _schema(self, where: str, old: Json, new: Json, *, sent: bool) -> Iterator[str]:
        names = (old.get("$ref", ""), new.get("$ref", ""), sent)
        if any(names[:2]):
            if names in self._seen:
                return
            self._seen.add(names)
        old, new = self._was(old), self._is(new)
        yield from _type(where, old, new, sent=sent)
        yield from (_narrowed if sent else _widened)(where, old, new)
        fields, now = old.get("properties", {}), new.get("properties", {})
        for name, field in fields.items():
            if name not in now:
                yield f"{where}: field {name} removed"
            else:
                yield from self._schema(f"{where}.{name}", field, now[name], sent=sent)
        required = [set(each.get("required", [])) for each in (old, new)]
        for name in sorted(required[1] - required[0] if sent else (required[0] - required[1]) & now.keys()):
            yield f"{where}: field {name} became {'required' if sent else 'optional'}"
        if "items" in old:
            yield from self._schema(f"{where}[]", old["items"], new.get("items", {}), sent=sent)
        for union in ("anyOf", "oneOf", "allOf"):
            # a union of other parts may mean anything: whoever changes one decides
            if [part.get("$ref", part) for part in old.get(union, [])] != [
                part.get("$ref", part) for part in new.get(union, [])
            ]:
                yield f"{where}: {union} changed"
            for was, part in zip(old.get(union, []), new.get(union, []), strict=False):
                yield from self._schema(where, was, part, sent=sent)

    def _was(self, part: Json) -> Json:
        return _resolved(self._old, part)

    def _is(self, part: Json) -> Json:
        return _resolved(self._new, part)


def _resolved(description: Json, part: Json) -> Json:
    while "$ref" in part:
        found: Any = description
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        part = found
    return part


def _opens(way: Json, needed: Json) -> bool:
    """Say whether a way to authorize is enough for what is needed."""
    return all(name in way and set(scopes) <= set(way[name]) for name, scopes in needed.items())


def _type(where: str, old: Json, new: Json, *, sent: bool) -> Iterator[str]:
    """Compare types: what is sent may get further ones, what is answered may lose some."""
    was, now = _types(old), _types(new)
    wide, narrow = (now, was) if sent else (was, now)
    if wide is not None and (narrow is None or not narrow <= wide):
        yield f"{where}: type changed"
    if old.get("format") != new.get("format") and (new if sent else old).get("format"):
        yield f"{where}: format changed"


def _types(schema: Json) -> set[str] | None:
    given = schema.get("type")
    if given is None:
        return None
    names = set(given if isinstance(given, list) else [given])
    return names | {"integer"} if "number" in names else names


def _narrowed(where: str, old: Json, new: Json) -> Iterator[str]:
    """Say what may not be sent any more."""
    if "enum" in new and not ("enum" in old and set(map(str, old["enum"])) <= set(map(str, new["enum"]))):
        yield f"{where}: fewer values are taken"
    for name in ("pattern", "const", "not"):
        if name in new and new[name] != old.get(name):
            yield f"{where}: {name} changed"
    for name in _UPPER:
        if name in new and (name not in old or new[name] < old[name]):
            yield f"{where}: {name} lowered"
    for name in _LOWER:
        if name in new and (name not in old or new[name] > old[name]):
            yield f"{where}: {name} raised"
    if new.get("additionalProperties", True) is False and old.get("additionalProperties", True) is not False:
        yield f"{where}: other fields are refused now"


def _widened(where: str, old: Json, new: Json) -> Iterator[str]:
    """Say what a client may meet that it did not have to expect."""
    if "enum" in old and not ("enum" in new and set(map(str, new["enum"])) <= set(map(str, old["enum"]))):
        yield f"{where}: further values are answered"
