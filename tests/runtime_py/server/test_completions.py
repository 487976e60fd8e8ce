"""/v1/completions: the texts of `Package.generate`, whole and in parts."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from runtime_py.package import Package
from runtime_py.sampling import Sampling
from runtime_py.server.log_probabilities import LOWEST
from tests.runtime_py.conftest import CAPACITY
from tests.runtime_py.server.conftest import MakeClient
from tests.runtime_py.server.sse import events_of

URL = "/v1/completions"


def complete(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post(URL, json=fields)
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


def texts(content: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in content["choices"]]


def test_a_text_is_the_packages_own(client: TestClient, package: Package) -> None:
    content = complete(client, model="toy", prompt="hi abc", max_tokens=20)
    assert texts(content) == [package.generate("hi abc", max_new_tokens=20)]
    assert content["choices"][0]["finish_reason"] == "length"
    assert content["object"] == "text_completion"
    usage = content["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 20, 27)


def test_a_text_ends_with_the_context(client: TestClient) -> None:
    content = complete(client, prompt="hi abc")
    assert content["usage"]["total_tokens"] == CAPACITY + 1
    assert content["choices"][0]["finish_reason"] == "length"


def test_a_stream_has_the_same_text_in_parts(client: TestClient) -> None:
    fields = {"prompt": ["hi abc", [0, 7, 9]], "n": 2, "max_tokens": 12, "stop": ["zz"], "echo": True}
    whole = complete(client, **fields)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = client.post(URL, json=fields | options)
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, last = events_of(response.text)
    streamed = [""] * 4
    for part in parts:
        assert part["usage"] is None
        (choice,) = part["choices"]
        streamed[choice["index"]] += choice["text"]
    assert streamed == texts(whole)
    assert {part["choices"][0]["finish_reason"] for part in parts} >= {"length"}
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert {part["id"] for part in parts} == {last["id"]}


def test_stop_strings_are_not_shown(client: TestClient, package: Package) -> None:
    text = package.generate("hi abc", max_new_tokens=20)
    stop = text[6:9]
    content = complete(client, prompt="hi abc", max_tokens=20, stop=[stop, "never"], logprobs=0)
    assert texts(content) == [text[: text.index(stop)]]
    assert content["choices"][0]["finish_reason"] == "stop"
    assert "".join(content["choices"][0]["logprobs"]["tokens"]) == text[: text.index(stop)]


def test_a_seed_repeats_a_text_and_choices_differ(client: TestClient, package: Package) -> None:
    fields = {"prompt": "hi", "max_tokens": 16, "temperature": 1.5, "seed": 11}
    content = complete(client, n=3, **fields)
    assert texts(complete(client, n=3, **fields)) == texts(content)
    assert len(set(texts(content))) == 3
    sampling = Sampling(temperature=1.5, seed=12)
    assert texts(content)[1] == package.generate("hi", max_new_tokens=16, sampling=sampling)


def test_a_seed_alone_does_not_turn_sampling_on(client: TestClient, package: Package) -> None:
    content = complete(client, prompt="hi", max_tokens=8, seed=3)
    assert texts(content) == [package.generate("hi", max_new_tokens=8)]


def test_biases_and_penalties_reach_the_choice_of_tokens(client: TestClient, package: Package) -> None:
    (token,) = package.tokenizer.encode("Q", special=False)
    content = complete(client, prompt="hi", max_tokens=4, logit_bias={str(token): 100})
    assert texts(content) == ["QQQQ"]
    bias = {str(token): 100}
    content = complete(client, prompt="hi", max_tokens=4, logit_bias=bias, frequency_penalty=1000)
    assert texts(content)[0].count("Q") == 1


def test_log_probabilities_of_the_prompt_and_of_new_tokens(client: TestClient, package: Package) -> None:
    content = complete(client, prompt="hi", max_tokens=3, logprobs=2, echo=True)
    log = content["choices"][0]["logprobs"]
    scored = package.score(package.tokenizer.encode("hi" + content["choices"][0]["text"][2:]), 2)
    assert log["tokens"][0] == "<s>"
    assert "".join(log["tokens"][1:]) == content["choices"][0]["text"]
    assert log["token_logprobs"][0] is None
    expected = [max(LOWEST, token.log_probability or 0) for token in scored[1:]]
    assert log["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    assert all(2 <= len(top) <= 3 for top in log["top_logprobs"][1:])
    assert log["text_offset"][:4] == [0, 3, 4, 5]


def test_max_tokens_0_scores_the_prompt(client: TestClient, package: Package) -> None:
    content = complete(client, prompt=["hi", "abc"], max_tokens=0, logprobs=1, echo=True)
    assert texts(content) == ["hi", "abc"]
    assert content["usage"]["completion_tokens"] == 0
    assert len(content["choices"][1]["logprobs"]["tokens"]) == 4


def test_a_prefix_is_not_computed_again(client: TestClient) -> None:
    prompt = "the same long beginning of a prompt "
    complete(client, prompt=prompt + "one", max_tokens=1)
    usage = complete(client, prompt=prompt + "two", max_tokens=1)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == len(prompt) + 1


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({}, "prompt: Field required", "prompt"),
        ({"prompt": 5}, "prompt: ", "prompt"),
        ({"prompt": []}, "the prompt is empty", "prompt"),
        ({"prompt": [[]]}, "the prompt is empty", None),
        ({"prompt": [999]}, "the prompt has the token id 999", None),
        ({"prompt": "hi", "max_tokens": "5"}, "max_tokens: Input should be a valid integer", "max_tokens"),
        ({"prompt": "hi", "max_tokens": 0}, "max_tokens is 0", "max_tokens"),
        ({"prompt": "hi", "temperature": -1}, "temperature: ", "temperature"),
        ({"prompt": "hi", "n": 0}, "n: ", "n"),
        ({"prompt": "hi", "stop": ""}, "stop: a stop string is empty", "stop"),
        ({"prompt": "hi", "logit_bias": {"a": 1}}, "logit_bias", "logit_bias"),
        ({"prompt": "hi", "logit_bias": {"999": 1}}, "logit_bias has the token id 999", None),
        ({"prompt": "hi", "suffix": "x"}, "suffix is not supported", "suffix"),
        ({"prompt": "hi", "best_of": 2}, "best_of is not supported", "best_of"),
        ({"prompt": "hi", "model": "other"}, "there is no model 'other': this server has toy", "model"),
    ],
)
def test_wrong_fields_are_named(client: TestClient, fields: dict[str, Any], message: str, param: str) -> None:
    response = client.post(URL, json=fields)
    assert response.status_code == (404 if "model" in fields else 400)
    error = response.json()["error"]
    assert error["message"].startswith(message)
    assert error["param"] == param
    assert (error["code"] == "model_not_found") == ("model" in fields)


def test_a_long_prompt_is_refused_before_the_stream_begins(client: TestClient) -> None:
    response = client.post(URL, json={"prompt": "a" * 800, "stream": True})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["n_prompt_tokens"], error["n_ctx"]) == (
        "context_length_exceeded",
        801,
        CAPACITY,
    )


def test_integers_may_be_written_as_json_allows(client: TestClient) -> None:
    assert complete(client, prompt=[0, 7.0], max_tokens=3.0)["usage"]["completion_tokens"] == 3
    assert complete(client, prompt="hi", max_tokens=3, temperature=1e-300, seed=1.0)


def test_fields_without_effect_are_named(client: TestClient) -> None:
    response = client.post(URL, json={"prompt": "hi", "max_tokens": 1, "max_token": 5, "user": "me"})
    assert response.headers["x-ignored-fields"] == "max_token"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1]", b'{"prompt": "hi", "temperature": NaN}', b"\xff", b"[" * 100_000]
)
def test_a_body_that_is_no_object(client: TestClient, body: bytes) -> None:
    response = client.post(URL, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_busy_server_says_when_to_try_again(make_client: MakeClient) -> None:
    client = make_client(parallel=1, queue=0)
    admission = client.app.service.models.models["toy"].admission  # type: ignore[attr-defined]
    assert client.portal is not None
    release = client.portal.call(admission.acquire)
    response = client.post(URL, json={"prompt": "hi", "max_tokens": 1})
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    client.portal.call(release)
    complete(client, prompt="hi", max_tokens=1)


def test_settings_of_the_server_go_under_those_of_a_request(make_client: MakeClient) -> None:
    client = make_client(
        sampling=Sampling(temperature=20.0), seed=4, max_new_tokens=9, any_model=True, api_keys=()
    )
    content = complete(client, prompt="hi", model="anything")
    assert content["usage"]["completion_tokens"] == 9
    assert texts(complete(client, prompt="hi", max_tokens=50)) == texts(content)
    assert texts(complete(client, prompt="hi", seed=5)) != texts(content)
    greedy = texts(complete(client, prompt="hi", temperature=0, seed=5))
    assert greedy == texts(complete(client, prompt="hi", temperature=0, seed=6))
    settings = client.post("/completion", json={"prompt": "hi"}).json()["generation_settings"]
    assert (settings["temperature"], settings["seed"], settings["n_predict"]) == (20.0, 4, 9)
    assert client.get("/props").json()["default_generation_settings"]["params"]["seed"] == 4
