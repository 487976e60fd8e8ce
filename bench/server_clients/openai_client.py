"""Call a server with Python's `openai`: `python openai_client.py URL`. Each check prints a line.

The model must chat with tools, in the format of Hermes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Annotated

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field

HELLO = [{"role": "user", "content": "Hello"}]
CITIES = ("Rome", "Oslo")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": list(CITIES)}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Answer(BaseModel):
    """A structured answer."""

    model_config = ConfigDict(extra="forbid")

    size: Annotated[int, Field(ge=0, le=99)]
    right: bool


def check(url: str, key: str = "none") -> dict[str, bool]:
    """Call a server in all ways.

    Args:
        url: The address, with `/v1`.
        key: The API key.

    Returns:
        Whether each check passed, by name.
    """
    client = OpenAI(base_url=url, api_key=key, max_retries=0)
    model = client.models.list().data[0].id
    checks: dict[str, Callable[[], bool]] = {
        "models": lambda: client.models.retrieve(model).id == model,
        "completion": lambda: _completion(client, model),
        "chat": lambda: _chat(client, model),
        "stream": lambda: _stream(client, model),
        "structured output": lambda: _structured(client, model),
        "tools": lambda: _tools(client, model),
        "stream of a tool call": lambda: _tool_stream(client, model),
        "errors": lambda: _errors(client, model),
        "async": lambda: asyncio.run(_async(url, key, model)),
    }
    return {name: run() for name, run in checks.items()}


def _completion(client: OpenAI, model: str) -> bool:
    answer = client.completions.create(model=model, prompt="Once", max_tokens=4, logprobs=2, echo=True, n=2)
    first, second = answer.choices
    log = first.logprobs
    assert log is not None
    assert log.tokens is not None
    return first.text.startswith("Once") and len(log.tokens) > 4 and second.index == 1


def _chat(client: OpenAI, model: str) -> bool:
    answer = client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=5, logprobs=True, top_logprobs=2, seed=1, temperature=0.5
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert answer.usage is not None
    count = len(choice.logprobs.content or [])
    return choice.message.role == "assistant" and count == answer.usage.completion_tokens <= 5


def _stream(client: OpenAI, model: str) -> bool:
    whole = client.chat.completions.create(model=model, messages=HELLO, max_tokens=8, temperature=0)
    parts = list(
        client.chat.completions.create(
            model=model,
            messages=HELLO,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    usage = parts[-1].usage
    return text == whole.choices[0].message.content and usage is not None and usage.completion_tokens == 8


def _structured(client: OpenAI, model: str) -> bool:
    messages = [{"role": "user", "content": "A size"}]
    answer = client.chat.completions.parse(
        model=model, messages=messages, response_format=Answer, max_tokens=150, temperature=1, seed=2
    )
    return isinstance(answer.choices[0].message.parsed, Answer)


def _tools(client: OpenAI, model: str) -> bool:
    answer = client.chat.completions.create(
        model=model,
        messages=HELLO,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    arguments = json.loads(call.function.arguments)
    messages = [
        *HELLO,
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "20 degrees"},
    ]
    after = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER], max_tokens=2)
    return (
        answer.choices[0].finish_reason == "tool_calls"
        and call.function.name == "weather"
        and arguments["city"] in CITIES
        and after.choices[0].finish_reason == "length"
    )


def _tool_stream(client: OpenAI, model: str) -> bool:
    choice = {"type": "function", "function": {"name": "weather"}}
    with client.chat.completions.stream(
        model=model, messages=HELLO, tools=[WEATHER], tool_choice=choice, max_tokens=200
    ) as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    return json.loads(call.function.arguments)["city"] in CITIES


def _errors(client: OpenAI, model: str) -> bool:
    try:
        client.completions.create(model=model, prompt="x " * 20_000)
    except openai.BadRequestError as error:
        if error.code != "context_length_exceeded":
            return False
    try:
        client.completions.create(model=model, prompt="x", temperature=-1)
    except openai.BadRequestError as error:
        return error.param == "temperature"
    return False


async def _async(url: str, key: str, model: str) -> bool:
    async with AsyncOpenAI(base_url=url, api_key=key) as client:
        tasks = [
            client.completions.create(model=model, prompt=f"Text {number}", max_tokens=6)
            for number in range(8)
        ]
        answers = await asyncio.gather(*tasks)
        stream = await client.completions.create(model=model, prompt="Text 1", max_tokens=6, stream=True)
        parts = [part.choices[0].text async for part in stream if part.choices]
    return "".join(parts) == answers[1].choices[0].text


def main() -> int:
    """Run the checks.

    Returns:
        The exit code: 1 if one failed.
    """
    results = check(sys.argv[1])
    for name, passed in results.items():
        print(f"{'pass' if passed else 'FAIL'}  openai: {name}")
    return int(not all(results.values()))


if __name__ == "__main__":
    sys.exit(main())
