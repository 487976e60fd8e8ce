"""/v1/chat/completions: the conversation by the template, and the answers of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from runtime_py.package import Package
from runtime_py.server.app import App
from tests.runtime_py.server.sse import events_of

URL = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def chat(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post(URL, json={"messages": HELLO, **fields})
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


def test_an_answer_is_the_conversations_own(client: TestClient, package: Package) -> None:
    conversation = package.chat("Be kind.", max_new_tokens=10)
    expected = "".join(token.text for token in conversation.say("hello"))
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
    ]
    content = chat(client, messages=messages, max_completion_tokens=10)
    (choice,) = content["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected}
    assert choice["finish_reason"] == "length"
    assert content["object"] == "chat.completion"
    assert content["model"] == "toy"


def test_a_stream_begins_with_the_role_and_ends_with_a_reason(client: TestClient) -> None:
    whole = chat(client, max_tokens=9)
    response = client.post(URL, json={"messages": HELLO, "max_tokens": 9, "stream": True})
    first, *parts = events_of(response.text)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
    text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert text == whole["choices"][0]["message"]["content"]
    assert parts[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}


def test_log_probabilities_have_bytes(client: TestClient) -> None:
    fields = {"max_tokens": 8, "logprobs": True, "top_logprobs": 3, "temperature": 0}
    (choice,) = chat(client, **fields)["choices"]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 8
    text = b"".join(bytes(entry["bytes"]) for entry in entries).decode(errors="replace")
    assert text == choice["message"]["content"]
    for entry in entries:
        assert len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]
    response = client.post(URL, json={"messages": HELLO, "stream": True, **fields})
    streamed = [
        entry
        for part in events_of(response.text)
        for entry in (part["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == entries


def test_several_choices(client: TestClient) -> None:
    content = chat(client, n=3, max_tokens=8, temperature=20.0, seed=1)
    answers = [choice["message"]["content"] for choice in content["choices"]]
    assert len(set(answers)) == 3
    assert content["usage"]["completion_tokens"] == 24
    assert [choice["index"] for choice in content["choices"]] == [0, 1, 2]


def test_the_messages_of_tool_calls_reach_the_template(client: TestClient) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c"},
    ]
    chat(client, messages=messages, max_tokens=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content: "),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type: Input should be 'text'",
        ),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens must be at least 1"),
        ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs: "),
    ],
)
def test_wrong_fields_are_named(client: TestClient, fields: dict[str, Any], message: str) -> None:
    response = client.post(URL, json=fields)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)


def test_a_package_without_a_template_says_so(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with Package.load(tmp_path) as package:
        client = TestClient(App({"plain": package}), base_url="http://localhost")
        response = client.post(URL, json={"messages": HELLO})
        assert response.status_code == 400
        assert "plain has no chat template" in response.json()["error"]["message"]
        assert str(tmp_path) not in response.text
