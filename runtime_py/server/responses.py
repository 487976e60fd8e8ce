"""Responses: JSON, and streams of server-sent events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from o2o import __version__
from runtime_py.generation.generate import Finish
from runtime_py.server.errors import api_error
from runtime_py.server.models import ServedModel
from runtime_py.server.schemas import Fields
from runtime_py.server.texts import Ended, Started

FINGERPRINT = f"build-o2o-{__version__}"
"""Begins with b, as that of llama.cpp."""
DONE = b"data: [DONE]\n\n"
REASONS: Mapping[Finish, str] = {"eos": "stop", "stop": "stop", "length": "length", "capacity": "length"}
"""OpenAI's `finish_reason` by reason."""


class Json(Response):
    """A JSON object."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


def dumps(content: Any) -> bytes:
    """Write JSON without spaces.

    Args:
        content: What JSON can write.

    Returns:
        UTF-8.
    """
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def event(content: Any) -> bytes:
    """Write a server-sent event.

    Args:
        content: What JSON can write.

    Returns:
        The lines of the event.
    """
    return b"data: %b\n\n" % dumps(content)


class EventStream(Response):
    """Server-sent events. The response begins with the first one: an error before it has its own status."""

    def __init__(
        self,
        events: AbstractAsyncContextManager[AsyncIterator[bytes]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Create a response.

        Args:
            events: Writes the events, one or several at a time.
            headers: Further headers.
        """
        self.background = None
        self._events = events
        fields = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}
        fields |= {name.lower(): value for name, value in (headers or {}).items()}
        self._raw = [(name.encode(), value.encode()) for name, value in fields.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events.

        Args:
            scope: See ASGI.
            receive: See ASGI.
            send: See ASGI.
        """
        started = False
        try:
            async with self._events as events:
                async for data in events:
                    if not started:
                        started = True
                        await send({"type": "http.response.start", "status": 200, "headers": self._raw})
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:
            if not started:
                raise
            data = event(api_error(error, scope["app"].names).body)
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Completion:
    """What all parts of a response have in common."""

    chunked = False
    """Whether the objects of a stream have a name of their own."""

    def __init__(self, kind: str, prefix: str, model: ServedModel) -> None:
        """Begin a response.

        Args:
            kind: OpenAI's name of the object.
            prefix: The beginning of its id.
            model: The model.
        """
        self.head: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": FINGERPRINT,
        }
        self.prompts: dict[int, int] = {}
        """The number of tokens of each prompt, by the number of its first text."""
        self.ended: list[Ended] = []
        """The texts that have ended."""
        self.num_new = 0
        """The number of new tokens, also of a text that has not ended."""

    @property
    def chunk_head(self) -> dict[str, Any]:
        """The first fields of a chunk of a stream."""
        return self.head | ({"object": f"{self.head['object']}.chunk"} if self.chunked else {})

    def start(self, started: Started, choices: int) -> None:
        """Count a prompt.

        Args:
            started: A text that starts.
            choices: The number of texts for each prompt.
        """
        self.prompts[started.index // choices] = len(started.ids)

    @property
    def usage(self) -> dict[str, Any]:
        """The numbers of tokens."""
        prompt, new = sum(self.prompts.values()), self.num_new
        cached = min(prompt, self.ended[0].num_cached if self.ended else 0)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    @property
    def timings(self) -> dict[str, Any]:
        """Numbers of tokens and milliseconds of the last text, as llama.cpp names them."""
        if not self.ended:
            return {}
        text = self.ended[-1]
        prompt = list(self.prompts.values())[-1] - text.num_cached
        return timings(text, prompt)


def timings(text: Ended, num_prompt: int) -> dict[str, Any]:
    """Write the times of a text as llama.cpp does.

    Args:
        text: A text that ended.
        num_prompt: The number of tokens of the prompt that were computed.

    Returns:
        Numbers of tokens, milliseconds, and tokens per second.
    """
    after_first = max(text.num_new - 1, 0)
    return {
        "cache_n": text.num_cached,
        "prompt_n": num_prompt,
        **_speed("prompt", num_prompt, text.prompt_seconds),
        "predicted_n": text.num_new,
        **_speed("predicted", after_first, text.new_seconds),
    }


def _speed(name: str, tokens: int, seconds: float) -> dict[str, float]:
    milliseconds = seconds * 1000
    return {
        f"{name}_ms": round(milliseconds, 3),
        f"{name}_per_token_ms": round(milliseconds / tokens, 3) if tokens else 0.0,
        f"{name}_per_second": round(tokens / seconds, 3) if seconds > 0 else 0.0,
    }


def ignored_header(fields: Fields) -> dict[str, str]:
    """Name the fields of a request that have no effect.

    Args:
        fields: The fields.

    Returns:
        A header; nothing if there are none.
    """
    names = [name[:40] for name in fields.ignored if name.isascii() and name.isprintable()]
    return {"X-Ignored-Fields": ",".join(names[:20])} if names else {}
