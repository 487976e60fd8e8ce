"""Pipelines as text, in the shell's syntax: `gc.py < a.circle | fuse.rope.py > b.circle`.

Supported are words and quotes, `|`, `<` in the first command, and `>` at the end. A line is a pipeline, and
so is what `;` or `&&` ends. A `\\` or `|` at the end of a line continues it. Lines that begin with `#` are
comments.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from o2o.errors import UsageError

ENDS_LINE = {"\n", ";", "&&"}
_TOKEN = re.compile(
    r"""[^\S\n]*(?:
        (?P<operator> [|<>;&]+ | \n )
      | (?P<word> (?: [^\s|<>;&'"\\] | \\. | '[^']*' | "(?:[^"\\]|\\.)*" )+ )
    )""",
    re.VERBOSE | re.DOTALL,
)


class _Operator(str):
    """A word that stands for itself, such as `|`. The same characters in quotes are a plain word."""


@dataclass(frozen=True)
class Pipeline:
    """Commands, each of which reads what the one before it writes.

    Attributes:
        stages: The words of each command.
        input: The file that the first command reads; None for stdin.
        output: The file that the last command writes; None for stdout.
    """

    stages: list[list[str]]
    input: str | None = None
    output: str | None = None


def parse(text: str) -> list[Pipeline]:
    """Parse pipelines.

    Args:
        text: One pipeline, or several on lines of their own.

    Returns:
        The pipelines in order.

    Raises:
        UsageError: The text has other syntax, or no pipeline.
    """
    pipelines = [_pipeline(words) for words in _statements(_words(text))]
    if not pipelines:
        raise UsageError("the pipeline is empty: name filters, such as 'fuse.attention | gc'")
    return pipelines


def render(pipelines: Iterable[Pipeline]) -> str:
    """Write pipelines as text for a shell.

    Args:
        pipelines: The pipelines.

    Returns:
        A line for each of their commands.
    """
    return "".join(f"{_line(pipeline)}\n" for pipeline in pipelines)


def _line(pipeline: Pipeline) -> str:
    first, *rest = (shlex.join(words) for words in pipeline.stages)
    if pipeline.input is not None:
        first += f" < {shlex.quote(pipeline.input)}"
    line = " \\\n  | ".join((first, *rest))
    return line if pipeline.output is None else f"{line} > {shlex.quote(pipeline.output)}"


def _words(text: str) -> Iterator[str]:
    """The words and operators of a text."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join([*lines, ""]).replace("\\\n", " ")
    position = 0
    while text[position:].strip(" \t"):
        match = _TOKEN.match(text, position)
        if match is None:
            rest = text[position:].strip().splitlines()[0]
            raise UsageError(f"the pipeline has a quote without an end: {rest}")
        position = match.end()
        if (operator := match["operator"]) is not None:
            yield _Operator(operator)
        else:
            yield shlex.split(match["word"])[0]


def _statements(words: Iterable[str]) -> Iterator[list[str]]:
    statement: list[str] = []
    for word in words:
        if not _is(word, *ENDS_LINE):
            statement.append(word)
        elif statement and not (word == "\n" and _is(statement[-1], "|")):
            yield statement
            statement = []
    if statement:
        yield statement


def _pipeline(words: list[str]) -> Pipeline:
    stages: list[list[str]] = [[]]
    files: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if _is(word, "|") and stages[-1] and ">" not in files:
            stages.append([])
        elif _is(word, "<", ">") and word not in files:
            if word == "<" and len(stages) > 1:
                raise UsageError("only the first filter of a pipeline reads a file with `<`")
            files[word] = next(rest, _Operator(""))
            if isinstance(files[word], _Operator):
                raise UsageError(f"a file must follow `{word}`")
        elif isinstance(word, _Operator):
            raise UsageError(f"`{word}` has no meaning at this place of a pipeline: {' '.join(words)}")
        else:
            stages[-1].append(word)
    if not all(stages):
        raise UsageError(f"a filter is missing beside `|`: {' '.join(words)}")
    return Pipeline(stages, files.get("<"), files.get(">"))


def _is(word: str, *operators: str) -> bool:
    return isinstance(word, _Operator) and word in operators
