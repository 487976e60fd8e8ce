"""Grammars as values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from o2o.errors import UsageError
from runtime_py.generation.grammar import Grammar


def test_a_schema_is_json_text_or_an_object() -> None:
    schema = {"type": "string"}
    assert Grammar.json_schema(schema) == Grammar.json_schema(json.dumps(schema))
    assert Grammar.json_schema(True).source == "true"


@pytest.mark.parametrize("schema", ["{", "5", 5, [], {"a": {1}}])
def test_anything_else_is_refused(schema: Any) -> None:
    with pytest.raises(UsageError, match="the JSON schema"):
        Grammar.json_schema(schema)


def test_gbnf_is_recognized() -> None:
    assert Grammar.lark("start: A").kind == "lark"
    assert Grammar.lark('root ::= "a"').kind == "gbnf"
