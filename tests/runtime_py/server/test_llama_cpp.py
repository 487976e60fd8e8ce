"""llama.cpp's endpoints: their texts, their fields, their streams."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from runtime_py.package import Package
from tests.runtime_py.conftest import CAPACITY, TEMPLATE

URL = "/completion"


def complete(client: TestClient, **fields: Any) -> Any:
    response = client.post(URL, json={"prompt": "hi abc", **fields})
    assert response.status_code == 200, response.text
    return response.json()


def streamed(client: TestClient, **fields: Any) -> list[Any]:
    text = client.post(URL, json={"prompt": "hi abc", "stream": True, **fields}).text
    assert "[DONE]" not in text
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-1]]


def test_a_text_with_its_numbers(client: TestClient, package: Package) -> None:
    content = complete(client, n_predict=12, return_tokens=True)
    text = package.generate("hi abc", max_new_tokens=12)
    assert content["content"] == text
    assert package.tokenizer.decode(content["tokens"]) == text
    assert (content["tokens_predicted"], content["tokens_evaluated"], content["stop_type"]) == (
        12,
        7,
        "limit",
    )
    assert (content["timings"]["prompt_n"], content["timings"]["predicted_n"]) == (7, 12)
    assert content["generation_settings"]["n_predict"] == 12
    assert content["prompt"] == "<s>hi abc"
    assert content["truncated"] is False
    assert complete(client, n_predict=-1)["tokens_cached"] == CAPACITY


def test_a_stream_is_the_same_text(client: TestClient) -> None:
    whole = complete(client, n_predict=12, return_tokens=True)
    *parts, last = streamed(client, n_predict=12)
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert [token for part in parts for token in part["tokens"]] == whole["tokens"]
    assert not any(part["stop"] for part in parts)
    assert last["stop"] is True
    assert (last["content"], last["tokens"]) == ("", [])


def test_the_stopping_word(client: TestClient) -> None:
    text = complete(client, n_predict=20)["content"]
    content = complete(client, n_predict=20, stop=["never", text[8:10], text[5:7]])
    assert content["stop_type"] == "word"
    assert content["content"] == text[: text.index(content["stopping_word"])]


def test_prompts_of_ids_and_texts(client: TestClient, package: Package) -> None:
    ids = client.post("/tokenize", json={"content": "hi abc", "add_special": True}).json()["tokens"]
    assert ids == package.tokenizer.encode("hi abc")
    expected = complete(client, n_predict=6)["content"]
    assert complete(client, prompt=ids, n_predict=6)["content"] == expected
    assert complete(client, prompt=[*ids[:3], " abc"], n_predict=6)["content"] == expected
    several = complete(client, prompt=[ids, "hi abc", [*ids[:5], "bc"]], n_predict=6)
    assert [one["content"] for one in several] == [expected] * 3


def test_probabilities(client: TestClient) -> None:
    content = complete(client, n_predict=5, n_probs=3, temperature=0.0)
    entries = content["completion_probabilities"]
    assert len(entries) == 5
    assert all(len(entry["top_logprobs"]) == 3 for entry in entries)
    parts = streamed(client, n_predict=5, n_probs=3, temperature=0.0)
    assert [entry for part in parts[:-1] for entry in part["completion_probabilities"]] == entries


def test_biases_of_ids_texts_and_false(client: TestClient, package: Package) -> None:
    first = complete(client, n_predict=1, return_tokens=True)["tokens"][0]
    assert complete(client, n_predict=1, logit_bias=[["Q", 1000]])["content"] == "Q"
    assert complete(client, n_predict=1, logit_bias={"Q": 1000})["content"] == "Q"
    assert complete(client, n_predict=1, logit_bias=[[first, False]], return_tokens=True)["tokens"] != [first]
    response = client.post(URL, json={"prompt": "hi", "logit_bias": [[1]]})
    assert response.status_code == 400


def test_selected_fields(client: TestClient) -> None:
    fields = ["content", "generation_settings/n_predict", "nothing/here"]
    content = complete(client, n_predict=3, response_fields=fields)
    assert content.keys() == {"content", "generation_settings/n_predict"}


@pytest.mark.parametrize("value", [True, 0])
def test_probabilities_after_sampling_are_refused(client: TestClient, value: Any) -> None:
    response = client.post(URL, json={"prompt": "hi", "n_probs": 2, "post_sampling_probs": value})
    assert response.status_code == 400


def test_a_negative_seed_is_random_and_a_seed_repeats(client: TestClient) -> None:
    content = complete(client, n_predict=16, temperature=3.0, seed=5)
    assert content["generation_settings"]["seed"] == 5
    assert complete(client, n_predict=16, temperature=3.0, seed=5)["content"] == content["content"]
    assert complete(client, n_predict=16, temperature=3.0, seed=-1)["content"] != content["content"]


def test_props_and_slots(client: TestClient) -> None:
    props = client.get("/props").json()
    assert props["total_slots"] == 4
    assert props["default_generation_settings"]["n_ctx"] == CAPACITY
    assert props["chat_template"] == TEMPLATE
    assert (props["bos_token"], props["eos_token"]) == ("<s>", "</s>")
    slots = client.get("/slots?model=toy").json()
    assert [(slot["id"], slot["n_ctx"], slot["is_processing"]) for slot in slots] == [
        (number, CAPACITY, False) for number in range(4)
    ]
    assert client.get("/slots?model=none").status_code == 404


def test_tokens_there_and_back(client: TestClient) -> None:
    text = "What is é?"
    pieces = client.post("/tokenize", json={"content": text, "with_pieces": True}).json()["tokens"]
    assert [piece["piece"] for piece in pieces[-4:]] == [" ", [0xC3], [0xA9], "?"]
    ids = [piece["id"] for piece in pieces]
    assert client.post("/detokenize", json={"tokens": ids}).json() == {"content": text}
    assert client.post("/tokenize", json={"content": 5}).status_code == 400
    assert client.post("/detokenize", json={"tokens": [-1]}).status_code == 400


@pytest.mark.parametrize(("flag", "end"), [({}, "a"), ({"chat_template_kwargs": {"tools_": 1}}, "a")])
def test_a_rendered_conversation(client: TestClient, flag: dict[str, Any], end: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    fields = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool], **flag}
    assert client.post("/apply-template", json=fields).json() == {"prompt": f"<s>u hi 1 {end}"}


def test_the_tokens_of_a_conversation_are_counted(client: TestClient, package: Package) -> None:
    fields = {"messages": [{"role": "user", "content": "hi"}]}
    count = client.post("/v1/chat/completions/input_tokens", json=fields).json()["input_tokens"]
    assert count == len(package.tokenizer.encode("<s>u hi a", special=False))


def test_the_last_message_is_continued(client: TestClient) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes, "}]
    fields = {"messages": messages, "continue_final_message": True}
    assert client.post("/apply-template", json=fields).json()["prompt"] == "<s>u hi a Yes,"
    chat = client.post("/v1/chat/completions", json={**fields, "max_tokens": 2})
    assert chat.json()["usage"]["prompt_tokens"] == len("u hi a Yes,") + 1
    refused = client.post("/apply-template", json={**fields, "add_generation_prompt": True})
    assert refused.status_code == 400
    empty = {**fields, "messages": [{"role": "assistant", "content": ""}]}
    assert client.post("/apply-template", json=empty).status_code == 400
