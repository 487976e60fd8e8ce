"""Tool formats: how a model writes the calls of tools, by its chat template.

Hermes, Qwen    <tool_call>{"name": "f", "arguments": {...}}</tool_call>, once for each call
Qwen3-Coder     <tool_call><function=f><parameter=x>...</parameter></function></tool_call>
Llama 3         {"name": "f", "parameters": {...}}, perhaps after <|python_tag|>
Mistral         [TOOL_CALLS][{"name": "f", "arguments": {...}}], or [TOOL_CALLS]f[ARGS]{...}
"""

from __future__ import annotations

import itertools
import json
import re
import secrets
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime_py.generation.grammar import WHITESPACE, Grammar
from runtime_py.server.output_parser import Delta, OutputParser, split_at
from runtime_py.server.schemas import Tool

MARKS = ("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
"""Texts that mark calls. In some vocabularies they are special tokens, which no text shows."""
_MISTRAL_ID = 9


@dataclass(frozen=True)
class ToolFormat:
    """A format of calls.

    Attributes:
        name: Its name in messages.
        mark: A text that templates with this format have.
        parser: Makes the parser of an answer, for tools of these names.
        begin: The text before the first call.
        end: The text after the last call.
        between: The text between two calls; None if there is only one.
        call: The text of a call: before the name, between name and arguments, after the arguments.
    """

    name: str
    mark: str
    parser: Callable[[frozenset[str]], OutputParser]
    begin: str
    end: str
    between: str | None
    call: tuple[str, str, str]

    def grammar(self, tools: Sequence[Tool], several: bool, special: Mapping[str, int]) -> Grammar:
        """Return the grammar of an answer that calls one of the tools, or several.

        Args:
            tools: The tools.
            several: Whether there may be several calls.
            special: The ids of the marks that are special tokens.

        Returns:
            The grammar.
        """

        marks = re.compile("|".join(map(re.escape, special)) or "(?!)")

        def text(value: str) -> str:
            words = [json.dumps(part) if part else "" for part in marks.split(value)]
            ids = [f"<[{special[mark]}]>" for mark in marks.findall(value)]
            both = itertools.chain.from_iterable(itertools.zip_longest(words, ids, fillvalue=""))
            return " ".join(filter(None, both))

        calls = " | ".join(f"call_{index}" for index in range(len(tools)))
        more = f"({text(self.between)} call)*" if several and self.between is not None else ""
        lines = [f"start: {text(self.begin)} call {more} {text(self.end)}", f"call: {calls}"]
        before, middle, after = self.call
        for index, tool in enumerate(tools):
            schema = {"x-guidance": {"whitespace_pattern": WHITESPACE}, **_parameters(tool)}
            name = tool.function.name
            lines.append(f"call_{index}: {text(before + name + middle)} args_{index} {text(after)}")
            lines.append(f"args_{index}: %json {json.dumps(schema)}")
        return Grammar("lark", "\n".join(lines))


class CallParser:
    """Reads an answer in which calls are marked. Subclasses read what is buffered."""

    def __init__(self, names: frozenset[str]) -> None:
        """Start an answer.

        Args:
            names: The names of the tools.
        """
        self.num_calls = 0
        self._names = names
        self._buffer = ""
        self._inside = False

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        self._buffer += text
        return self._read()

    def end(self) -> list[Delta]:
        """See `OutputParser`."""
        rest, self._buffer = self._buffer, ""
        return self._read_last(rest)

    def _read(self) -> list[Delta]:
        """Take what is complete from `_buffer`."""
        raise NotImplementedError

    def _read_last(self, rest: str) -> list[Delta]:
        """Take the text that was held back to the end."""
        raise NotImplementedError


class HermesParser(CallParser):
    """Calls between `<tool_call>` and `</tool_call>`; all other text is content."""

    def _read(self) -> list[Delta]:
        deltas: list[Delta] = []
        while True:
            mark = "</tool_call>" if self._inside else "<tool_call>"
            before, rest, complete = split_at(self._buffer, mark)
            if self._inside:
                if not complete:
                    return deltas
                deltas += self._call(before)
            else:
                content = before.rstrip()  # spaces before a call belong to it
                deltas += [Delta(content=content)] if content else []
                if not complete:
                    self._buffer = before[len(content) :] + rest
                    return deltas
            self._buffer, self._inside = rest, not self._inside

    def _read_last(self, rest: str) -> list[Delta]:
        if self._inside:
            return self._call(rest)
        return [Delta(content=rest)] if rest.strip() or (rest and not self.num_calls) else []

    def _call(self, body: str) -> list[Delta]:
        call = _json_call(body) or _xml_call(body)
        if call is None:
            return [Delta(content=f"<tool_call>{body}</tool_call>")]
        self.num_calls += 1
        return [_delta(self.num_calls - 1, call)]


class LlamaParser(CallParser):
    """An answer that is JSON of calls from its beginning, or from `<|python_tag|>` on.

    JSON with the name of no tool is content.
    """

    _is_text = False

    def _read(self) -> list[Delta]:
        begin = self._buffer.lstrip()
        if not self._is_text:
            if not begin or begin[0] == "{" or "<|python_tag|>".startswith(begin[:14]):
                return []
            self._is_text = True
        before, rest, complete = split_at(self._buffer, "<|python_tag|>")
        self._buffer = "<|python_tag|>" + rest if complete else rest
        self._is_text = not complete
        return [Delta(content=before)] if before else []

    def _read_last(self, rest: str) -> list[Delta]:
        body = rest.strip().removeprefix("<|python_tag|>")
        calls = [] if self._is_text else list(_json_calls(body))
        if not calls and not self._is_text and (builtin := _python_call(body)):
            calls = [builtin]
        if not calls or any(name not in self._names for name, _ in calls):
            return [Delta(content=rest)] if rest else []
        self.num_calls = len(calls)
        return [_delta(index, call) for index, call in enumerate(calls)]


class MistralParser(CallParser):
    """Calls after `[TOOL_CALLS]`; the text before it is content."""

    def _read(self) -> list[Delta]:
        if self._inside:
            return []
        before, self._buffer, self._inside = split_at(self._buffer, "[TOOL_CALLS]")
        return [Delta(content=before)] if before else []

    def _read_last(self, rest: str) -> list[Delta]:
        if not self._inside:
            return [Delta(content=rest)] if rest else []
        calls = list(_mistral_calls(rest))
        if not calls:
            return [Delta(content=f"[TOOL_CALLS]{rest}")]
        self.num_calls = len(calls)
        return [_delta(index, call, _mistral_id()) for index, call in enumerate(calls)]


_HERMES_CALL = ('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")
FORMATS = (
    ToolFormat(
        "Mistral, from version 11 of its tokenizer on",
        "[ARGS]",
        MistralParser,
        "",
        "",
        "",
        ("[TOOL_CALLS]", "[ARGS]", ""),
    ),
    ToolFormat(
        "Mistral",
        "[TOOL_CALLS]",
        MistralParser,
        "[TOOL_CALLS][",
        "]",
        ", ",
        ('{"name": "', '", "arguments": ', "}"),
    ),
    ToolFormat(
        "Qwen3-Coder",
        "<function=",
        HermesParser,
        "",
        "",
        "\n",
        _HERMES_CALL,
    ),
    ToolFormat(
        "Hermes",
        "<tool_call>",
        HermesParser,
        "",
        "",
        "\n",
        _HERMES_CALL,
    ),
    ToolFormat(
        "Llama 3",
        '"parameters": ',
        LlamaParser,
        "",
        "",
        None,
        ('{"name": "', '", "parameters": ', "}"),
    ),
)
"""The formats. The first whose mark a template has is the template's."""

Call = tuple[str, Any]
"""The name of a function, and its arguments."""


def format_of(template: str) -> ToolFormat | None:
    """Find the format of a chat template.

    Args:
        template: Its source.

    Returns:
        The format; None if the template takes no tools, or has an unknown format.
    """
    if "tools" not in template:
        return None
    return next((each for each in FORMATS if each.mark in template), None)


def _parameters(tool: Tool) -> dict[str, Any]:
    return tool.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


def _delta(index: int, call: Call, call_id: str | None = None) -> Delta:
    name, arguments = call
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Delta(call=index, call_id=call_id or f"call_{secrets.token_hex(12)}", name=name, arguments=text)


def _mistral_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(_MISTRAL_ID))


def _call_of(value: Any) -> Call | None:
    """The call that a JSON value is."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return (value["name"], arguments) if isinstance(arguments, dict | str) else None


def _json_call(text: str) -> Call | None:
    try:
        return _call_of(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _json_calls(text: str) -> Iterator[Call]:
    """Calls in a row, with semicolons or line breaks between. Nothing if one of them is malformed."""
    decoder, place, calls = json.JSONDecoder(), 0, []
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return
        if (call := _call_of(value)) is None:
            return
        calls.append(call)
        while place < len(text) and text[place] in "; \t\r\n":
            place += 1
    yield from calls


_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>)?\s*", re.S)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.S)
_PYTHON = re.compile(r"([\w.-]+)\.call\((.*)\)", re.S)
_KEYWORD = re.compile(r'(\w+)\s*=\s*("(?:[^"\\]|\\.)*"|[-\w.]+)\s*(?:,|$)')
_NAMED = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*([\w.:-]+)(?:\[CALL_ID\][\w-]+)?(?:\[ARGS\])?\s*(?={)")


def _xml_call(text: str) -> Call | None:
    """A call in the form of Qwen3-Coder. A value that is JSON is that value, other text a string."""
    if (match := _FUNCTION.fullmatch(text)) is None:
        return None
    return match[1], {name: _value(value) for name, value in _PARAMETER.findall(match[2])}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _python_call(text: str) -> Call | None:
    """A call such as `brave_search.call(query="...")`."""
    if (match := _PYTHON.fullmatch(text.strip())) is None:
        return None
    return match[1], {name: _value(value) for name, value in _KEYWORD.findall(match[2])}


def _mistral_calls(text: str) -> Iterator[Call]:
    """A list of calls, or names with arguments in a row. Nothing if the text is malformed."""
    if text.lstrip().startswith("["):
        values = _value(text)
        calls = [_call_of(value) for value in values] if isinstance(values, list) else [None]
        yield from [call for call in calls if call is not None] if None not in calls else []
        return
    decoder, place = json.JSONDecoder(), 0
    named: list[Call] = []
    while place < len(text.rstrip()):
        if (match := _NAMED.match(text, place)) is None:
            return
        try:
            arguments, place = decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            return
        named.append((match[1], arguments))
    yield from named
