"""Whatever goes wrong in a command is one line on stderr, and an exit code that means something."""

from __future__ import annotations

import pytest

from o2o.cli import command
from o2o.errors import ModelError, UsageError


def run(error: BaseException | None, debug: bool = False) -> int:
    def body() -> int | None:
        if error is not None:
            raise error
        return None

    return command.run("tool.py", body, debug)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ModelError("a bad\n model"), 1, "a bad model"),
        (UsageError("wrong"), 2, "wrong"),
        (FileNotFoundError(2, "No such file", "x.circle"), 1, "x.circle: No such file"),
        (OSError(28, "No space left"), 1, "No space left: make room, or write elsewhere"),
        (
            OSError(27, "File too large", "x"),
            1,
            "x: File too large: the limit of `ulimit -f` or of the file system is reached: write elsewhere",
        ),
        (
            IsADirectoryError(21, "Is a directory", "my-package"),
            1,
            "my-package: Is a directory: give a file in it, such as model.circle",
        ),
        (OSError("odd"), 1, "odd"),
        (MemoryError(), 1, "out of memory"),
        (RecursionError(), 1, "the graph is nested too deeply"),
        (KeyError("x"), 1, "internal error: KeyError: 'x' (--debug shows where)"),
    ],
)
def test_an_error_is_one_line(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(error) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"tool.py: {line}\n"


@pytest.mark.parametrize(("error", "code"), [(None, 0), (BrokenPipeError(), 141)])
def test_silent_ends(error: BaseException | None, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(error) == code
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "tool.py: interrupted\n")


def test_a_body_that_ended_by_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run("tool.py", lambda: command.INTERRUPTED) == 130
    assert capsys.readouterr() == ("", "tool.py: interrupted\n")


def test_a_closed_stderr_does_not_move_messages_to_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert run(ModelError("no")) == 1
    assert capsys.readouterr().out == ""


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ModelError("no"), debug=True) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "tool.py: no"
