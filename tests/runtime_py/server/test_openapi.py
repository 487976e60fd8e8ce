"""The OpenAPI document: valid schemas, and the endpoints that there are."""

from __future__ import annotations

from typing import Any

import jsonschema
from starlette.testclient import TestClient

from runtime_py.server.app import ENDPOINTS
from tests.runtime_py.server.conftest import MakeClient


def resolved(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


def test_every_endpoint_is_described(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item if path != "/"
    }
    assert described == {(each.method, each.path.replace(":path", "")) for each in ENDPOINTS}
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids)


def test_requests_and_answers_match_their_schemas(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for name in document["components"]["schemas"]:
        jsonschema.Draft202012Validator.check_schema(resolved(document, name))
    prompt = {"prompt": "hi", "max_tokens": 2, "stop": ["x"], "logit_bias": {"5": 1.0}}
    messages = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    for path, fields, request, answer in (
        ("/v1/completions", prompt, "CompletionRequest", "Completion"),
        ("/v1/chat/completions", messages, "ChatRequest", "ChatCompletion"),
        ("/completion", prompt, "NativeRequest", "NativeCompletion"),
        ("/tokenize", {"content": "hi"}, "TokenizeRequest", "Tokens"),
        ("/apply-template", messages, "TemplateRequest", "Prompt"),
        ("/v1/completions", {"prompt": 5}, "", "Error"),
    ):
        if request:
            jsonschema.validate(fields, resolved(document, request))
        jsonschema.validate(client.post(path, json=fields).json(), resolved(document, answer))
    for path, answer in (("/v1/models", "Models"), ("/slots", "Slots"), ("/nothing", "Error")):
        jsonschema.validate(client.get(path).json(), resolved(document, answer))


def test_keys_are_described(make_client: MakeClient) -> None:
    headers = {"Authorization": "Bearer k"}
    document = make_client(api_keys=("k",)).get("/openapi.json", headers=headers).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/v1/completions"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/health"]["get"]
