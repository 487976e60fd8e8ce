"""Output parsers: they divide the text of an answer into content, reasoning and tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

REASONING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""The marks before and after reasoning, of which a template has one pair or none."""
REASONING_MARKS = tuple(mark for pair in REASONING for mark in pair)


@dataclass(frozen=True)
class Delta:
    """An addition to an answer.

    Attributes:
        content: Text for the user.
        reasoning: Text of the reasoning before it.
        call: The number of a tool call; None for none.
        call_id: The id of a tool call that begins.
        name: The name of the function of a tool call that begins.
        arguments: JSON that is added to the arguments of the tool call.
    """

    content: str = ""
    reasoning: str = ""
    call: int | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str = ""

    @property
    def json(self) -> dict[str, Any]:
        """The delta in OpenAI's form."""
        fields: dict[str, Any] = {}
        if self.content:
            fields["content"] = self.content
        if self.reasoning:
            fields["reasoning_content"] = self.reasoning
        if self.call is not None:
            call: dict[str, Any] = {"index": self.call}
            function: dict[str, Any] = {"arguments": self.arguments}
            if self.name is not None:
                call |= {"id": self.call_id, "type": "function"}
                function = {"name": self.name, **function}
            fields["tool_calls"] = [{**call, "function": function}]
        return fields


class OutputParser(Protocol):
    """Reads the text of one answer, piece by piece."""

    @property
    def num_calls(self) -> int:
        """The number of tool calls so far."""
        ...

    def push(self, text: str) -> list[Delta]:
        """Read a piece.

        Args:
            text: The piece, with the names of special tokens that mark tool calls or reasoning.

        Returns:
            The additions to the answer. Text that may be the beginning of a mark is held back.
        """
        ...

    def end(self) -> list[Delta]:
        """Finish the answer.

        Returns:
            The additions of the text that was held back.
        """
        ...


class PlainText:
    """All text is content."""

    num_calls = 0

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        return [Delta(content=text)] if text else []

    def end(self) -> list[Delta]:
        """See `OutputParser`."""
        return []


class ReasoningParser:
    """Reasoning at the beginning of an answer, between two marks; another parser reads the rest."""

    def __init__(self, begin: str, end: str, begun: bool, rest: OutputParser) -> None:
        """Start an answer.

        Args:
            begin: The mark before the reasoning.
            end: The mark after it.
            begun: Whether the prompt ends with `begin`.
            rest: Reads the text after the reasoning.
        """
        self._begin, self._end, self._rest = begin, end, rest
        self._state = "reasoning" if begun else "begin"
        self._buffer = ""
        self._shown = False  # whether reasoning was shown: spaces before it do not count

    @property
    def num_calls(self) -> int:
        """See `OutputParser`."""
        return self._rest.num_calls

    def push(self, text: str) -> list[Delta]:
        """See `OutputParser`."""
        if self._state == "rest":
            return self._rest.push(text)
        self._buffer += text
        if self._state == "begin":
            start = self._buffer.lstrip()
            if not start.startswith(self._begin):
                return [] if self._begin.startswith(start) else self._finish(self._buffer)
            self._state, self._buffer = "reasoning", start.removeprefix(self._begin)
        if self._state == "reasoning":
            text = self._buffer if self._shown else self._buffer.lstrip()
            before, rest, complete = split_at(text, self._end)
            shown = before.rstrip()  # spaces before the mark do not count
            self._buffer = before[len(shown) :] + rest
            self._shown = self._shown or bool(shown)
            deltas = [Delta(reasoning=shown)] if shown else []
            if not complete:
                return deltas
            self._state = "after"
            self._buffer = rest
            return deltas + self.push("")
        content = self._buffer.lstrip()  # the line breaks after the reasoning
        return self._finish(content) if content else []

    def end(self) -> list[Delta]:
        """See `OutputParser`."""
        if self._state == "rest":
            return self._rest.end()
        if self._state == "reasoning":
            return [Delta(reasoning=self._buffer)] if self._buffer.strip() else []
        return self._finish(self._buffer if self._state == "begin" else "") + self._rest.end()

    def _finish(self, text: str) -> list[Delta]:
        self._state, self._buffer = "rest", ""
        return self._rest.push(text) if text else []


def split_at(text: str, mark: str) -> tuple[str, str, bool]:
    """Split a text at the first mark.

    Args:
        text: A text that may go on.
        mark: The mark.

    Returns:
        The text before the mark, the text after it, and true. Without a mark: the text that is before any
        mark to come, the rest, which may begin one, and false.
    """
    place = text.find(mark)
    if place >= 0:
        return text[:place], text[place + len(mark) :], True
    lengths = range(min(len(text), len(mark) - 1), 0, -1)
    held = next((n for n in lengths if text.endswith(mark[:n])), 0)
    return text[: len(text) - held], text[len(text) - held :], False
