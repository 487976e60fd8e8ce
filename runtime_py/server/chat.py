"""`/v1/chat/completions`: answer a conversation by the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from runtime_py.generation.grammar import Grammar
from runtime_py.server.completions import common_texts
from runtime_py.server.errors import ApiError
from runtime_py.server.formats import grammar_of
from runtime_py.server.log_probabilities import PendingTokens, chat_entry
from runtime_py.server.models import ServedModel
from runtime_py.server.output_parser import REASONING, Delta, OutputParser, PlainText, ReasoningParser
from runtime_py.server.responses import REASONS, Completion
from runtime_py.server.schemas import (
    ChatMessage,
    ChatRequest,
    NamedTool,
    TemplateRequest,
    Tool,
    parse,
)
from runtime_py.server.service import service_of
from runtime_py.server.texts import Ended, Event, Piece, Started, generate_texts
from runtime_py.server.tool_formats import ToolFormat, format_of
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
    answer = Answer.of(fields, model)
    texts = replace(
        common_texts(service, fields, limit),
        prompts=answer.prompts,
        grammar=answer.grammar or grammar_of(fields, fields.response_format, service.settings.max_grammar),
        log_probabilities=(fields.top_logprobs or 0) if fields.logprobs else None,
    )
    writer = _Writer(model, texts.choices, bool(fields.logprobs), answer)
    make = partial(generate_texts, model, texts)
    return await service.respond(request, model, make, writer.push, writer.completion, fields, _joined)


class Answer:
    """The form of the answers to a request: their tools, the prompt, the parser of their texts."""

    def __init__(self, fields: ChatRequest, tools: Sequence[Tool], tool_format: ToolFormat | None) -> None:
        """Describe the answers.

        Args:
            fields: The request.
            tools: The tools that the model may call.
            tool_format: How it calls them; None without tools.
        """
        self._fields = fields
        self._tools = tools
        self._format = tool_format
        self._prompt = ""
        self.grammar: Grammar | None = None
        """The grammar of an answer that must call a tool."""

    @classmethod
    def of(cls, fields: ChatRequest, model: ServedModel) -> Answer:
        """Return the form of the answers to a request.

        Args:
            fields: The request.
            model: The model.

        Returns:
            The form.

        Raises:
            ApiError: There is no such tool, or the template of the model takes no tools.
        """
        tools, choice = fields.tools or [], fields.tool_choice
        if choice == "none":
            tools = []
        elif choice not in (None, "auto") and not tools:
            raise ApiError(400, "tool_choice needs tools", param="tool_choice")
        if not tools:
            return cls(fields, (), None)
        tool_format = format_of(model.template_source(with_tools=True))
        if tool_format is None:
            raise ApiError(
                400,
                f"the chat template of {model.name} has no known format of tools: leave out tools",
                param="tools",
            )
        answer = cls(fields, tools, tool_format)
        if choice not in (None, "auto"):
            callable_tools = tools
            if isinstance(choice, NamedTool):
                callable_tools = [tool for tool in tools if tool.function.name == choice.function.name]
            if not callable_tools:
                raise ApiError(400, "tool_choice names none of the tools", param="tool_choice")
            several = choice == "required" and fields.parallel_tool_calls is not False
            answer.grammar = tool_format.grammar(callable_tools, several, model.special_marks)
        return answer

    def prompts(self, model: ServedModel) -> list[list[int]]:
        """Render the conversation.

        Args:
            model: The model.

        Returns:
            The only prompt.

        Raises:
            UsageError: The template refuses the messages.
        """
        self._prompt = rendered(model, self._fields, self._tools)
        return [model.package.tokenizer.encode(self._prompt, special=False)]

    def parser(self, model: ServedModel) -> OutputParser:
        """Make the parser of an answer, after `prompts`.

        Args:
            model: The model.

        Returns:
            The parser.
        """
        names = frozenset(tool.function.name for tool in self._tools)
        parser: OutputParser = PlainText() if self._format is None else self._format.parser(names)
        source = model.template_source(with_tools=bool(self._tools))
        if self._fields.reasoning_format == "none":
            return parser
        for begin, end in REASONING:
            if end in source:
                begun = self._prompt.rstrip().endswith(begin)
                return ReasoningParser(begin, end, begun, parser)
        return parser


def rendered(model: ServedModel, fields: ChatRequest | TemplateRequest, tools: Sequence[Tool]) -> str:
    """Render the conversation of a request.

    Args:
        model: The model.
        fields: The request.
        tools: The tools that the model may call.

    Returns:
        The prompt. With `continue_final_message` it ends with the text of the last message.

    Raises:
        ApiError: `continue_final_message` excludes `add_generation_prompt`, or the last message has no text.
        UsageError: The template refuses the messages.
    """
    messages = template_messages(fields.messages)
    arguments = dict(fields.chat_template_kwargs or {})
    if fields.add_generation_prompt is not None:
        arguments["add_generation_prompt"] = fields.add_generation_prompt
    if not fields.continue_final_message:
        return model.render(messages, _template_tools(tools), arguments)
    if fields.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other"
        raise ApiError(400, message, param="continue_final_message")
    text = str(messages[-1]["content"]).strip()
    prompt = model.render(messages, _template_tools(tools), {**arguments, "add_generation_prompt": False})
    if not text or text not in prompt:
        raise ApiError(400, "continue_final_message: the prompt has no text of the last message")
    return prompt[: prompt.rindex(text) + len(text)]


def _template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    return [tool.model_dump(exclude_none=True) for tool in tools] or None


def template_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return messages as chat templates read them.

    Args:
        messages: The messages of a request.

    Returns:
        The messages: texts in place of lists of parts, and arguments of tool calls as objects.
    """
    return [_template_message(message) for message in messages]


def _template_message(message: ChatMessage) -> Message:
    fields = {"content": "", **message.model_dump(exclude_none=True)}  # templates expect a content
    fields["role"] = "system" if message.role == "developer" else message.role
    if isinstance(message.content, list):
        fields["content"] = "".join(part.text for part in message.content)
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

    def __init__(self, model: ServedModel, choices: int, logs: bool, answer: Answer) -> None:
        self.completion = _ChatCompletion("chat.completion", "chatcmpl", model)
        self._model = model
        self._choices = choices
        self._logs = logs
        self._answer = answer
        self._marks = {token: mark for mark, token in model.special_marks.items()}
        self._parser: OutputParser = PlainText()
        self._pending = PendingTokens(model.token_bytes)
        self._index = 0

    def push(self, item: Event) -> list[dict[str, Any]]:
        """Add an event. Return the choices that it adds."""
        match item:
            case Started():
                self.completion.start(item, self._choices)
                self._index = item.index
                self._parser = self._answer.parser(self._model)
                self._pending = PendingTokens(self._model.token_bytes)
                return [self._choice({"role": "assistant", "content": None})]
            case Piece():
                self.completion.num_new += 1
                deltas = self._parser.push(item.token.text + self._marks.get(item.token.id, ""))
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
