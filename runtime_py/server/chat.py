"""`/v1/chat/completions`: answer a conversation by the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from runtime_py.server.completions import common_texts
from runtime_py.server.errors import ApiError
from runtime_py.server.formats import grammar_of
from runtime_py.server.log_probabilities import PendingTokens, chat_entry
from runtime_py.server.models import ServedModel
from runtime_py.server.output_parser import Delta, OutputParser, PlainText
from runtime_py.server.responses import REASONS, Completion
from runtime_py.server.schemas import ChatMessage, ChatRequest, parse
from runtime_py.server.service import service_of
from runtime_py.server.texts import Ended, Event, Piece, Started, generate_texts
from runtime_py.text.chat_template import Message


async def chat_completions(request: Request) -> Response:
    """Handle a request.

    Args:
        request: A `ChatRequest`.

    Returns:
        The answers, or a stream of them.

    Raises:
        ApiError: The request is wrong, or the server is busy.
    """
    service = service_of(request)
    fields = parse(ChatRequest, await request.body())
    model = service.models.find(fields.model)
    limit = fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    if limit == 0:
        raise ApiError(400, "max_tokens must be at least 1", param="max_tokens")
    if fields.top_logprobs is not None and not fields.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
    messages = template_messages(fields.messages)

    def prompts(model: ServedModel) -> Sequence[Sequence[int]]:
        text = model.render(messages, template_args=fields.chat_template_kwargs)
        return [model.package.tokenizer.encode(text, special=False)]

    texts = replace(
        common_texts(service, fields, limit),
        prompts=prompts,
        grammar=grammar_of(fields, fields.response_format, service.settings.max_grammar),
        log_probabilities=(fields.top_logprobs or 0) if fields.logprobs else None,
    )
    writer = _Writer(model, texts.choices, bool(fields.logprobs), PlainText)
    make = partial(generate_texts, model, texts)
    return await service.respond(request, model, make, writer.push, writer.completion, fields, _joined)


def template_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return messages as chat templates read them.

    Args:
        messages: The messages of a request.

    Returns:
        The messages: texts in place of lists of parts, and arguments of tool calls as objects.

    Raises:
        ApiError: A part is no text.
    """
    return [_template_message(index, message) for index, message in enumerate(messages)]


def _template_message(index: int, message: ChatMessage) -> Message:
    fields = message.model_dump(exclude_none=True)
    fields["role"] = "system" if message.role == "developer" else message.role
    if isinstance(message.content, list):
        for part in message.content:
            if part.type != "text" or part.text is None:
                raise ApiError(
                    400,
                    f"messages[{index}] has a part of type {part.type[:40]!r}: this model reads text only",
                    param="messages",
                )
        fields["content"] = "".join(part.text or "" for part in message.content)
    for call in fields.get("tool_calls", ()):
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except (ValueError, RecursionError):
            continue  # the model's own words, as they are
        if isinstance(arguments, dict):
            function["arguments"] = arguments
    return cast(Message, fields)


class _Writer:
    """Writes the events as choices of a stream."""

    def __init__(
        self, model: ServedModel, choices: int, logs: bool, parser: type[OutputParser] | Any
    ) -> None:
        self.completion = _ChatCompletion("chat.completion", "chatcmpl", model)
        self._model = model
        self._choices = choices
        self._logs = logs
        self._make_parser = parser
        self._parser: OutputParser = parser()
        self._pending = PendingTokens(model.token_bytes)
        self._index = 0

    def push(self, item: Event) -> list[dict[str, Any]]:
        """Add an event. Return the choices that it adds."""
        match item:
            case Started():
                self.completion.start(item, self._choices)
                self._index = item.index
                self._parser = self._make_parser()
                self._pending = PendingTokens(self._model.token_bytes)
                return [self._choice({"role": "assistant", "content": None})]
            case Piece():
                self.completion.num_new += 1
                deltas = self._parser.push(item.token.text, item.token.id)
                if item.token.finish is not None:
                    deltas += self._parser.end()
                choices = [self._choice(delta.json) for delta in deltas]
                if self._logs and (shown := self._pending.push(item.token)):
                    choices = choices or [self._choice(Delta().json)]
                    content = [chat_entry(token, self._model.token_bytes) for token in shown]
                    choices[0]["logprobs"] = {"content": content, "refusal": None}
                return choices
            case Ended():
                self.completion.ended.append(item)
                reason = REASONS[item.finish]
                if self._parser.num_calls and reason == "stop":
                    reason = "tool_calls"
                return [{**self._choice({}), "finish_reason": reason}]

    def _choice(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}


class _ChatCompletion(Completion):
    chunked = True


def _joined(parts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of the whole response."""
    choices: dict[int, dict[str, Any]] = {}
    for part in parts:
        new = {"index": part["index"], "message": {}, "logprobs": None, "finish_reason": None}
        choice = choices.setdefault(part["index"], new)
        _add(choice["message"], part["delta"])
        choice["finish_reason"] = part["finish_reason"]
        if part["logprobs"] and choice["logprobs"]:
            choice["logprobs"]["content"] += part["logprobs"]["content"]
        else:
            choice["logprobs"] = choice["logprobs"] or part["logprobs"]
    for choice in choices.values():
        if choice["message"].get("tool_calls"):
            choice["message"]["content"] = choice["message"]["content"] or None
    return list(choices.values())


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            _add_calls(message.setdefault("tool_calls", []), value)
        else:
            message[name] = (message.get(name) or "") + (value or "")


def _add_calls(calls: list[dict[str, Any]], deltas: list[dict[str, Any]]) -> None:
    for delta in deltas:
        if delta["index"] == len(calls):
            calls.append({name: value for name, value in delta.items() if name != "index"})
        else:
            calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
