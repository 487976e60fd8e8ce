"""Messages of a chat, from a terminal and from a pipe."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest

from runtime_py.repl import HELP, read_messages


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def typed(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The messages of a user who types `lines`, then Ctrl-D."""
    rest = iter(lines)

    def answer(prompt: str) -> str:
        assert prompt == "> "
        if (line := next(rest, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", answer)
    return read_messages()


def test_an_unknown_command_prints_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/help", "Hello", "/exit ", "/reset", "/etc/hosts", "/help me"]
    assert list(typed(lines, monkeypatch)) == ["Hello", "/reset", "/etc/hosts", "/help me"]
    out, err = capsys.readouterr()
    assert (out, err) == ("\n", f"{HELP}\n" * 3)


def test_each_line_of_a_pipe_is_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/help\nHello\n"))
    assert list(read_messages()) == ["/help", "Hello"]
    assert capsys.readouterr() == ("", "")
