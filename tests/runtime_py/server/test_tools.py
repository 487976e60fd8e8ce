"""Tools and reasoning in chats, with templates of the common formats."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from runtime_py.package import Package
from runtime_py.server.app import App
from tests.runtime_py.server.sse import events_of

URL = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Rome", "Oslo"]},
                "days": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
MESSAGES = "<s>{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
TEMPLATES = {
    "hermes": MESSAGES + "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}",
    "llama": MESSAGES + '{% if tools %}{"name": name, "parameters": values}{% endif %}',
    "mistral": "{% if tools %}{{ tools | length }}[TOOL_CALLS]{% endif %}" + MESSAGES,
    "mistral11": "{% if tools %}[TOOL_CALLS]f[ARGS]{% endif %}" + MESSAGES,
    "unknown": MESSAGES + "{% if tools %}{{ tools | length }}{% endif %}",
    "strict": "{{ raise_exception('no') if messages | length > 1 }}a{{ messages[0].content | trim }}",
    "thinking": MESSAGES + "a <think>{# ends with </think> #}",
    "may_think": MESSAGES + "{# </think> #}",
}


@pytest.fixture(scope="module")
def clients(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TestClient]]:
    with ExitStack() as stack:
        made = {}
        for name, template in TEMPLATES.items():
            copy = tmp_path_factory.mktemp(name)
            for file in folder.iterdir():
                (copy / file.name).write_bytes(file.read_bytes())
            (copy / "chat_template.jinja").write_text(template)
            package = stack.enter_context(Package.load(copy))
            app = App({name: package})
            made[name] = stack.enter_context(TestClient(app, base_url="http://127.0.0.1"))
        yield made


def chat(client: TestClient, **fields: Any) -> Any:
    response = client.post(URL, json={"messages": HELLO, **fields})
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral", "mistral11"])
def test_a_required_call_matches_its_schema(clients: dict[str, TestClient], name: str) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        fields = {"tools": [WEATHER, CLOCK], "tool_choice": choice, "parallel_tool_calls": False}
        answer = chat(clients[name], temperature=1.0, seed=3, **fields)
        (call,) = answer["message"]["tool_calls"]
        assert answer["finish_reason"] == "tool_calls"
        assert answer["message"]["content"] is None
        assert call["type"] == "function"
        arguments = json.loads(call["function"]["arguments"])
        if choice == named:
            assert call["function"]["name"] == "weather"
        if call["function"]["name"] == "weather":
            jsonschema.validate(arguments, WEATHER["function"]["parameters"])  # type: ignore[index]
        response = clients[name].post(
            URL, json={"messages": HELLO, "temperature": 1.0, "seed": 3, "stream": True, **fields}
        )
        deltas = [part["choices"][0]["delta"] for part in events_of(response.text)]
        (streamed,) = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert streamed["function"] == call["function"]
        assert not any(delta.get("content") for delta in deltas)


def test_tools_reach_the_template_unless_none_is_chosen(clients: dict[str, TestClient]) -> None:
    fields = {"messages": HELLO, "tools": [WEATHER]}
    assert '"Rome"' in clients["hermes"].post("/apply-template", json=fields).json()["prompt"]
    lengths = {}
    for choice in ("auto", "none"):
        body = {**fields, "tool_choice": choice, "max_tokens": 1}
        response = clients["mistral"].post(URL, json=body)
        lengths[choice] = response.json()["usage"]["prompt_tokens"]
    assert lengths["none"] < lengths["auto"]
    assert chat(clients["unknown"], tools=[WEATHER], tool_choice="none", max_tokens=1)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("unknown", {"tools": [WEATHER]}, "has no known format of tools"),
        ("hermes", {"tool_choice": "required"}, "tool_choice needs tools"),
        (
            "hermes",
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            "names none of the tools",
        ),
        ("hermes", {"tools": [{"type": "retrieval"}]}, "tools.0.type"),
        ("hermes", {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        (
            "hermes",
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}],
                "tool_choice": "required",
            },
            "not supported",
        ),
    ],
)
def test_refusals(clients: dict[str, TestClient], name: str, fields: dict[str, Any], message: str) -> None:
    response = clients[name].post(URL, json={"messages": HELLO, **fields})
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_call_without_content_and_a_message_that_the_template_refuses(
    clients: dict[str, TestClient],
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": ""}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    assert chat(clients["strict"], messages=messages, max_tokens=1)
    response = clients["strict"].post(URL, json={"messages": messages * 2})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "the chat template of strict refuses the messages: no"


def test_reasoning_is_apart_from_the_answer(clients: dict[str, TestClient]) -> None:
    forced = {"response_format": {"type": "regex", "regex": "I see\\.</think>\n\nYes\\."}}
    message = chat(clients["thinking"], **forced)["message"]
    assert (message["reasoning_content"], message["content"]) == ("I see.", "Yes.")
    forced = {"response_format": {"type": "regex", "regex": "<think>\nI see\\.</think>\n\nYes\\."}}
    message = chat(clients["may_think"], **forced)["message"]
    assert (message["reasoning_content"], message["content"]) == ("I see.", "Yes.")
    message = chat(clients["may_think"], reasoning_format="none", **forced)["message"]
    assert message["content"].startswith("<think>")
    assert "reasoning_content" not in message
    forced = {"response_format": {"type": "regex", "regex": "Yes <think>\\."}}
    assert chat(clients["may_think"], **forced)["message"]["content"] == "Yes <think>."
