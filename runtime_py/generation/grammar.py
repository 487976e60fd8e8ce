"""Grammars: the form of a text, as a JSON schema, a regular expression or a context-free grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from o2o.errors import UsageError

WHITESPACE = r"[ \t\n\r]{0,16}"
"""Between the tokens of JSON. A model that writes spaces without end would never end the text."""
Kind = Literal["json_schema", "regex", "lark", "gbnf"]
"""The language of a grammar: GBNF is llama.cpp's."""


@dataclass(frozen=True)
class Grammar:
    """The form of a text. Each token is chosen among those that can continue a text of this form.

        grammar = Grammar.json_schema({"type": "object", "properties": {"age": {"type": "integer"}}})
        package.generate("Describe the dog as JSON:", grammar=grammar)

    Attributes:
        kind: The language of `source`.
        source: The grammar.
    """

    kind: Kind
    source: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """Return the grammar of JSON that matches a schema.

        Args:
            schema: The schema, or its JSON text. True and `{}` are any JSON.

        Returns:
            The grammar. It allows at most 16 spaces and line breaks in a row.

        Raises:
            UsageError: The text is not JSON, or the schema is neither an object nor true or false.
        """
        content: Any = schema
        try:
            if isinstance(schema, str):
                content = json.loads(schema)
            text = json.dumps(content)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the JSON schema is not JSON: {error}") from error
        if not isinstance(content, Mapping | bool):
            raise UsageError("the JSON schema must be an object, true or false")
        return cls("json_schema", text)

    @classmethod
    def json_object(cls) -> Grammar:
        """Return the grammar of any JSON object.

        Returns:
            The grammar.
        """
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Return the grammar of texts that match a regular expression as a whole.

        Args:
            pattern: In the syntax of Rust's `regex`: without look-around and references to groups.

        Returns:
            The grammar.
        """
        return cls("regex", pattern)

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """Return a context-free grammar.

        Args:
            text: In the syntax of Lark, with the rule `start`; or llama.cpp's GBNF, with the rule `root`.

        Returns:
            The grammar.
        """
        return cls("gbnf" if "::=" in text else "lark", text)
