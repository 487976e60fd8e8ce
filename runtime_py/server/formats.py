"""The format of an answer: the grammar that a request asks for."""

from __future__ import annotations

import json
from typing import Any

from o2o.errors import UsageError
from runtime_py.generation.grammar import Grammar
from runtime_py.server.errors import ApiError
from runtime_py.server.schemas import ResponseFormat, SamplingFields


def grammar_of(
    fields: SamplingFields, response_format: ResponseFormat | None, max_bytes: int
) -> Grammar | None:
    """Return the grammar of a request.

    Args:
        fields: The fields of the request: `json_schema` and `grammar` are those of llama.cpp.
        response_format: OpenAI's field.
        max_bytes: The largest grammar.

    Returns:
        The grammar; None for any text.

    Raises:
        ApiError: A field is missing, there are several grammars, or the grammar is too large.
    """
    sources: list[tuple[str, str, Any]] = []
    if response_format is not None and response_format.type != "text":
        sources.append(("response_format", response_format.type, _content(response_format)))
    if fields.json_schema is not None:
        sources.append(("json_schema", "json_schema", fields.json_schema))
    if fields.grammar:
        sources.append(("grammar", "lark", fields.grammar))
    if len(sources) > 1:
        raise ApiError(400, f"{sources[0][0]} and {sources[1][0]} exclude each other", param=sources[1][0])
    if not sources:
        return None
    ((name, kind, content),) = sources
    text = content if isinstance(content, str) else json.dumps(content)
    if len(text.encode(errors="replace")) > max_bytes:
        raise ApiError(400, f"{name}: the grammar has more than {max_bytes} bytes", param=name)
    try:
        text.encode()
        return _grammar(kind, text)
    except (UsageError, UnicodeEncodeError) as error:
        raise ApiError(400, f"{name}: {error}", param=name) from error


def _content(response_format: ResponseFormat) -> Any:
    """The schema or the text of a format."""
    kind = response_format.type
    if kind == "json_object":
        return {"type": "object"} if response_format.schema_ is None else response_format.schema_
    content: Any = getattr(response_format, kind)
    if kind == "json_schema":
        content = content.schema_ if content is not None else response_format.schema_
    if content is None:
        field = "json_schema.schema" if kind == "json_schema" else kind
        raise ApiError(400, f"response_format: the type {kind} needs {field}", param="response_format")
    return content


def _grammar(kind: str, text: str) -> Grammar:
    if kind == "regex":
        return Grammar.regex(text)
    return Grammar.lark(text) if kind == "lark" else Grammar.json_schema(text)
