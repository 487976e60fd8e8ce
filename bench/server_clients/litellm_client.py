"""Call a server with `litellm`: `python litellm_client.py URL`. Each check prints a line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is loaded from the network

import litellm

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}


def check(url: str) -> dict[str, bool]:
    """Call a server.

    Args:
        url: The address, with `/v1`.

    Returns:
        Whether each check passed, by name.
    """
    to: dict[str, Any] = {"model": "openai/any", "api_base": url, "api_key": "none", "messages": HELLO}
    whole = litellm.completion(max_tokens=8, temperature=0, **to)
    parts = litellm.completion(max_tokens=8, temperature=0, stream=True, **to)
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    structured = litellm.completion(max_tokens=80, response_format=form, **to)
    called = litellm.completion(max_tokens=80, tools=[TOOL], tool_choice="required", **to)
    other = asyncio.run(litellm.acompletion(max_tokens=8, temperature=0, **to))
    answer = whole.choices[0].message.content
    try:
        litellm.completion(**{**to, "messages": [{"role": "user", "content": "x " * 20_000}]})
        refused = False
    except litellm.ContextWindowExceededError:
        refused = True
    return {
        "chat": whole.usage.completion_tokens == 8,
        "stream": text == answer,
        "async": other.choices[0].message.content == answer,
        "structured output": json.loads(structured.choices[0].message.content)["a"] in (1, 2),
        "tools": json.loads(called.choices[0].message.tool_calls[0].function.arguments)["a"] in (1, 2),
        "a long prompt": refused,
    }


def main() -> int:
    """Run the checks.

    Returns:
        The exit code: 1 if one failed.
    """
    results = check(sys.argv[1])
    for name, passed in results.items():
        print(f"{'pass' if passed else 'FAIL'}  litellm: {name}")
    return int(not all(results.values()))


if __name__ == "__main__":
    sys.exit(main())
