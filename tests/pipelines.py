"""Pipelines of filters and exports, run in this process: starting each command costs more than its work."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from export import shell
from export.shell import StepFailed
from o2o import filters
from tests.compiled import compiled_once


def run_pipelines(steps: Iterable[str], folder: Path) -> None:
    """Run shell commands as `export.shell.run` does, without a shell and without child processes.

    Args:
        steps: Filters joined by `|`, with `<` and `>`; and `python -m export`.
        folder: The working folder.

    Raises:
        StepFailed: A command failed.
    """
    with contextlib.chdir(folder):
        for step in steps:
            for line in step.replace("\\\n", " ").splitlines():
                print(line, file=sys.stderr)
                if code := _run_line(line):
                    raise StepFailed(step, code)


def _run_line(line: str) -> int:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for token in lexer:
        if token == "|":
            commands.append([])
        else:
            commands[-1].append(token)
    if commands == [[]]:
        return 0
    piped: list[str] = []
    for number, command in enumerate(commands):
        argv = [*_without(command, "<"), *_after(command, "<"), *piped]
        target = _after(command, ">")
        if "-o" not in argv:
            target = target or [f".stage-{number}"]
            argv = [*_without(argv, ">"), "-o", *target]
        piped = target
        if code := _main_of(argv)():
            return code
    return 0


def _without(command: Sequence[str], redirect: str) -> list[str]:
    """Return `command` without the redirection and its file."""
    if redirect not in command:
        return list(command)
    at = command.index(redirect)
    return [*command[:at], *command[at + 2 :]]


def _after(command: Sequence[str], redirect: str) -> list[str]:
    """Return the file of a redirection, in a list that is empty where there is none."""
    return [command[command.index(redirect) + 1]] if redirect in command else []


def _main_of(argv: Sequence[str]) -> Callable[[], int]:
    if list(argv[:3]) == [sys.executable, "-m", "export"]:
        from export.__main__ import main

        return lambda: main([*argv[3:], "--jobs", "1"])
    module = argv[0].removesuffix(".py").replace(".", "_")
    return lambda: filters.load(module).main([*argv[1:]])


@contextlib.contextmanager
def in_process(shared: Path | None = None) -> Iterator[None]:
    """Within, `export.shell.run` is `run_pipelines`.

    Args:
        shared: A folder in which TICO's results are stored for other tests; None to compile each graph.
    """
    with pytest.MonkeyPatch.context() as patch, compiled_once(shared) if shared else contextlib.nullcontext():
        patch.setattr(shell, "run", run_pipelines)
        yield
