"""The examples in README and docs: their blocks, and the commands in them.

A block is fenced (```sh, ```python, ```json, ...) or, for commands, indented by four spaces. A comment before
a block keeps `docs.tools.run_examples` from running it:

    <!-- not run: needs the hub -->

A block with `title="FILE"` is the content of a new file. In ```diff it changes a file: the lines that begin
with a space or `-` are in the file, and those that begin with a space or `+` replace them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FIRST, _LAST = "docs/getting-started.md", "docs/adding.md"  # makes packages; changes the code
_OTHERS = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - {_FIRST, _LAST}
PAGES = [_FIRST, *sorted(_OTHERS), "README.md", _LAST]
"""The pages with examples, in the order in which these run."""
PROGRAM = re.compile(r"(?:o2o|python3?|make|pip|source|cd|git|[a-z]\w*(?:\.\w+)+\.py)(?= |$)")
_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
_SEPARATORS = {"|", ">", "<", ">>", "&&", ";"}


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        page: The page, relative to the repository.
        line: The number of its first line.
        language: What follows the fence; `sh` for indented commands.
        text: Its lines.
        reason: Why it cannot be run; empty if it can.
        title: The file that it writes or changes; empty for most blocks.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str = ""
    title: str = ""

    @property
    def change(self) -> tuple[str, str]:
        """The lines of a diff before and after, each with its newline."""
        lines = [(line[:1], f"{line[1:]}\n") for line in self.text.splitlines()]
        before, after = ("".join(text for sign, text in lines if sign in keep) for keep in ("- ", "+ "))
        return before, after

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The command lines of a `sh` block, without output and comments. Continued lines are joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if PROGRAM.match(line.strip())]


def blocks(page: str) -> Iterator[Block]:
    """Find the blocks of a page.

    Args:
        page: The page, relative to the repository.

    Yields:
        Its blocks, in order.
    """
    lines = (ROOT / page).read_text().splitlines()
    reason, number = "", 0
    while number < len(lines):
        line = lines[number]
        if match := _NOT_RUN.match(line):
            reason = match[1]
        elif line.startswith("```"):
            end = lines.index("```", number + 1)
            language, _, rest = line[3:].strip().partition(" ")
            title = rest.removeprefix('title="').removesuffix('"')
            yield Block(page, number + 1, language, "\n".join(lines[number + 1 : end]), reason, title)
            reason, number = "", end
        elif line.startswith("    ") and not lines[number - 1].strip():
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            text = "\n".join(one[4:] for one in lines[number:end]).rstrip()
            if PROGRAM.match(text):
                yield Block(page, number + 1, "sh", text, reason)
                reason = ""
            number = end - 1
        elif line.strip():
            reason = ""
        number += 1


def all_blocks(language: str) -> list[Block]:
    """Find the blocks of all pages.

    Args:
        language: The language.

    Returns:
        The blocks of this language.
    """
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def simple_commands(line: str) -> Iterator[list[str]]:
    """Split a command line into its simple commands.

    Args:
        line: A line of a shell script.

    Yields:
        The words of each command, without redirections.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>;&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    words: list[str] = []
    redirected = False
    for word in lexer:
        if word in (">", "<", ">>"):
            redirected = True
        elif word in _SEPARATORS:
            yield words
            words = []
        elif redirected:
            redirected = False
        else:
            words.append(word)
    yield words
