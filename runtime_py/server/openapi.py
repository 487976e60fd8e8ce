"""The description of the API, in the form of OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from o2o import __version__
from runtime_py.server.schemas import Fields

_STRING, _INTEGER, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
_JSON, _EVENTS, _TEXT = "application/json", "text/event-stream", "text/plain"


@dataclass(frozen=True)
class Endpoint:
    """An endpoint of the server.

    Attributes:
        method: GET or POST.
        path: The path, as Starlette writes it.
        handler: Answers requests.
        summary: Describes it in one line.
        fields: The fields of the body; None for no body.
        answer: A name of `ANSWERS`; None for text.
        query: The names of parameters of the query.
    """

    method: str
    path: str
    handler: Callable[[Request], Awaitable[Response]]
    summary: str
    fields: type[Fields] | None = None
    answer: str | None = "Object"
    query: tuple[str, ...] = ()


def _object(properties: Mapping[str, Any], *optional: str) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _nullable(schema: Any) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_USAGE = _object({"prompt_tokens": _INTEGER, "completion_tokens": _INTEGER, "total_tokens": _INTEGER})
_HEAD = {"id": _STRING, "object": _STRING, "created": _INTEGER, "model": _STRING}
_REASON = {"type": "string", "enum": ["stop", "length", "tool_calls"]}
_MODEL = _object({"id": _STRING, "object": _STRING, "created": _INTEGER, "owned_by": _STRING})
_CALL = _object(
    {
        "id": _STRING,
        "type": _STRING,
        "function": _object({"name": _STRING, "arguments": _STRING}),
    }
)
_MESSAGE = _object(
    {
        "role": _STRING,
        "content": _nullable(_STRING),
        "reasoning_content": _STRING,
        "tool_calls": _list(_CALL),
    },
    "reasoning_content",
    "tool_calls",
)
_NATIVE = _object({"content": _STRING, "stop": {"type": "boolean"}}, "content", "stop")

ANSWERS: Mapping[str, Any] = {
    "Object": {"type": "object"},
    "Model": _MODEL,
    "Models": _object({"object": _STRING, "data": _list(_MODEL)}),
    "ChatCompletion": _object(
        {
            **_HEAD,
            "choices": _list(_object({"index": _INTEGER, "message": _MESSAGE, "finish_reason": _REASON})),
            "usage": _USAGE,
        }
    ),
    "Completion": _object(
        {
            **_HEAD,
            "choices": _list(_object({"index": _INTEGER, "text": _STRING, "finish_reason": _REASON})),
            "usage": _USAGE,
        }
    ),
    "NativeCompletion": {"anyOf": [_NATIVE, _list(_NATIVE)]},
    "Tokens": _object({"tokens": _list({})}),
    "TokenCount": _object({"input_tokens": _INTEGER}),
    "Content": _object({"content": _STRING}),
    "Prompt": _object({"prompt": _STRING}),
    "Slots": _list(_object({"id": _INTEGER, "n_ctx": _INTEGER, "is_processing": {"type": "boolean"}})),
    "Slot": _object({"id_slot": _INTEGER}),
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _STRING,
                    "type": _STRING,
                    "param": _nullable(_STRING),
                    "code": _nullable(_STRING),
                }
            )
        }
    ),
}
"""JSON schemas of the answers. Answers may have further fields."""


@dataclass(frozen=True)
class Document:
    """Writes the description.

    Attributes:
        endpoints: The endpoints.
        keys: Whether requests need an API key.
        public: The paths that need none.
    """

    endpoints: Sequence[Endpoint]
    keys: bool = False
    public: frozenset[str] = field(default_factory=frozenset)

    @property
    def content(self) -> dict[str, Any]:
        """The document."""
        kinds = {each.fields for each in self.endpoints if each.fields is not None}
        ordered = sorted(kinds, key=lambda kind: kind.__name__)
        _, definitions = models_json_schema(
            [(kind, "validation") for kind in ordered], ref_template="#/components/schemas/{model}"
        )
        paths: dict[str, dict[str, Any]] = {}
        for endpoint in self.endpoints:
            path = endpoint.path.replace(":path}", "}")
            paths.setdefault(path, {})[endpoint.method.lower()] = self._operation(endpoint, path)
        components: dict[str, Any] = {"schemas": {**definitions.get("$defs", {}), **ANSWERS}}
        if self.keys:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return {
            "openapi": "3.1.0",
            "info": {"title": "o2o serve", "version": __version__},
            "paths": paths,
            "components": components,
        }

    def _operation(self, endpoint: Endpoint, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = {_TEXT: {"schema": _STRING}}
        if endpoint.answer is not None:
            answer = {_JSON: {"schema": {"$ref": f"#/components/schemas/{endpoint.answer}"}}}
        if endpoint.fields is not None and "stream" in endpoint.fields.model_fields:
            answer[_EVENTS] = {"schema": {}}
        error = {"schema": {"$ref": "#/components/schemas/Error"}}
        operation: dict[str, Any] = {
            "operationId": f"{endpoint.method.lower()}{path.replace('/', '_').strip('{}')}",
            "summary": endpoint.summary,
            "responses": {
                "200": {"description": "The answer.", "content": answer},
                "default": {"description": "An error.", "content": {_JSON: error}},
            },
        }
        parameters = [_parameter("path", name) for name in ("model", "id_slot") if f"{{{name}}}" in path]
        parameters += [_parameter("query", name) for name in endpoint.query]
        if parameters:
            operation["parameters"] = parameters
        if endpoint.fields is not None:
            schema = {"$ref": f"#/components/schemas/{endpoint.fields.__name__}"}
            operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
        if self.keys and endpoint.path not in self.public:
            operation["security"] = [{"key": []}]
        return operation


def _parameter(place: str, name: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": _STRING}
