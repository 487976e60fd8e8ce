"""Structured output: OpenAI's and llama.cpp's fields, and what is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.runtime_py.server.conftest import MakeClient
from tests.runtime_py.server.sse import events_of

HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 9}, "kind": {"enum": ["a", "b"]}},
    "required": ["n", "kind"],
    "additionalProperties": False,
}


def chat(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/chat/completions", content=json.dumps({"messages": HELLO, **fields}))


def answer(client: TestClient, **fields: Any) -> str:
    response = chat(client, **fields)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "stop"
    content: str = choice["message"]["content"]
    return content


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"json_schema": SCHEMA},
    ],
)
def test_json_of_a_schema(client: TestClient, fields: dict[str, Any]) -> None:
    value = json.loads(answer(client, **fields))
    assert value.keys() == {"n", "kind"}
    assert value["n"] in range(3, 10)
    assert value["kind"] in ("a", "b")


def test_other_grammars(client: TestClient) -> None:
    assert re.fullmatch(" [ab]{4}", answer(client, response_format={"type": "regex", "regex": " [ab]{4}"}))
    assert answer(client, response_format={"type": "lark", "lark": 'start: "hello"'}) == "hello"
    assert answer(client, grammar='root ::= "a"{5,5}', ignore_eos=True) == "aaaaa"
    assert chat(client, response_format={"type": "text"}, max_tokens=2).status_code == 200
    text = client.post(
        "/v1/completions", json={"prompt": "hi", "response_format": {"type": "regex", "regex": "no"}}
    )
    assert text.json()["choices"][0]["text"] == "no"
    assert (
        client.post("/completion", json={"prompt": "hi", "json_schema": {"const": 7}}).json()["content"]
        == "7"
    )


def test_a_stream(client: TestClient) -> None:
    response = chat(client, response_format={"type": "regex", "regex": "[0-9]{4}"}, stream=True)
    parts = [part["choices"][0]["delta"].get("content") or "" for part in events_of(response.text)]
    assert re.fullmatch("[0-9]{4}", "".join(parts))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"json_schema": {"uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"type": "hiccup"}}, "hiccup"),
        ({"response_format": {"type": "json_schema"}}, "needs json_schema.schema"),
        ({"response_format": {"type": "regex"}}, "needs regex"),
        ({"response_format": {"type": "sound"}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "schema": 123}}, "response_format.schema"),
        ({"response_format": {"type": "json_object"}, "grammar": "x"}, "exclude each other"),
        ({"grammar": "start: nothing"}, "unknown name"),
        ({"response_format": {"type": "regex", "regex": "a" * 2000}}, "more than 1000 bytes"),
        ({"response_format": {"type": "regex", "regex": "\ud800"}}, "lone surrogate"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_refusals(make_client: MakeClient, fields: dict[str, Any], message: str, stream: bool) -> None:
    response = chat(make_client(max_grammar=1000), stream=stream, **fields)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
