"""Output parsers: they divide the text of an answer into content, reasoning and tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Delta:
    """What a piece of text adds to an answer.

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

    def push(self, text: str, token: int) -> list[Delta]:
        """Read a piece.

        Args:
            text: The piece; "" for a special token, and while a character is incomplete.
            token: The id of the token.

        Returns:
            What it adds to the answer.
        """
        ...

    def end(self) -> list[Delta]:
        """Finish the answer.

        Returns:
            What was held back.
        """
        ...


class PlainText:
    """All text is content."""

    num_calls = 0

    def push(self, text: str, token: int) -> list[Delta]:
        """See `OutputParser`."""
        return [Delta(content=text)] if text else []

    def end(self) -> list[Delta]:
        """See `OutputParser`."""
        return []
