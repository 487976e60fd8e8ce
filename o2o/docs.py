"""`python -m o2o.docs [DIRECTORY]`: a page for each filter, made from its docstring and its arguments."""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("o2o.docs")

import argparse
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

from o2o import filters
from o2o.cli import command
from o2o.cli.arguments import Parser
from o2o.describe import TITLES
from o2o.filters.base import Filter, Purpose

DIRECTORY = Path(__file__).resolve().parent.parent / "docs" / "filters"
DEMO_MODEL = DIRECTORY.parent / "tools" / "demo_model.json"
"""What each filter prints for the demo model, written by docs/tools/demo_model.py."""
WIDTH = 96  # of the usage text, whatever the terminal's

INDEX = """\
# The filters

Each filter reads a model from stdin or from a file, changes it, and writes it to stdout or to `-o FILE`.
Messages go to stderr. The exit code is 0 for success, and 1 for a model that the filter cannot take. It is 2
for wrong usage or a selector that matches nothing. A filter that fails prints one line and writes nothing.
A filter that changes a model adds an entry to the model's history.
The tables say which formats a filter takes. All others it refuses.

Flags take `_` and `-` alike: `--keep_by_name` and `--keep-by-name` are the same flag.

`python -m o2o.docs` makes these pages from the docstrings.

"""


def pages() -> dict[str, str]:
    """Make all pages.

    Returns:
        Their texts in Markdown, by file name.
    """
    by_name = {filter_.name: filter_ for filter_ in map(filters.load, filters.names())}
    return {
        "README.md": INDEX + "\n".join(_index(by_name)),
        **{f"{name}.md": page(filter_) for name, filter_ in by_name.items()},
    }


def _index(by_name: Mapping[str, type[Filter]]) -> Iterator[str]:
    """The filters by purpose, in the order of `o2o filters`."""
    for purpose in get_args(Purpose):
        yield f"## {purpose}\n"
        yield f"| filter | task | {' | '.join(TITLES.values())} |\n|---|---|{'---|' * len(TITLES)}"
        for name, filter_ in by_name.items():
            if filter_.purpose == purpose:
                takes = " | ".join("yes" if one in filter_.input_formats else "" for one in TITLES)
                yield f"| [`{name}`]({name}.md) | {_paragraphs(filter_)[0]} | {takes} |"
        yield ""


def page(filter_: type[Filter]) -> str:
    """Make the page of a filter.

    Args:
        filter_: The filter.

    Returns:
        Its text in Markdown.
    """
    first, rest = _paragraphs(filter_)
    return (
        f"# {filter_.name}\n\n{first}\n\n{rest}\n\n## Example\n\n```sh\n{filter_.usage_example}\n```\n\n"
        f"{_on_the_demo_model(filter_.name)}## Arguments\n\n```text\n{_arguments(filter_)}```\n"
    )


def _on_the_demo_model(name: str) -> str:
    """The section about what a filter prints for the demo model; empty where that was not measured."""
    if not DEMO_MODEL.is_file() or (result := json.loads(DEMO_MODEL.read_text()).get(name)) is None:
        return ""
    messages = "".join(f"{name}: {message}\n" for message in result["messages"])
    return (
        "## On the demo model\n\nOn the graphs of `make run`:\n\n"
        f"```sh\n{result['command']} > out\n```\n\n"
        + (f"```text\n{messages}```\n\n" if messages else "")
        + (f"{textwrap.fill(result['note'], 110)}\n\n" if result["note"] else "")
    )


def _paragraphs(filter_: type[Filter]) -> tuple[str, str]:
    """Split the docstring into its first line and the rest. Markdown shows its indented drawings as code."""
    first, _, rest = (inspect.getdoc(filter_) or "").partition("\n")
    return first.strip(), rest.strip("\n")


def _arguments(filter_: type[Filter]) -> str:
    parser = filter_().parser()
    parser.description = parser.epilog = None
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=WIDTH)
    return parser.format_help()


def write(directory: Path) -> None:
    """Write all pages, and remove pages of filters that no longer exist.

    Args:
        directory: It is created if it does not exist.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = pages()
    for old in directory.glob("*.md"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (directory / name).write_text(text)


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(prog="python -m o2o.docs", description="Write a page for each filter.")
    parser.add_argument("directory", nargs="?", type=Path, default=DIRECTORY, help="(%(default)s)")
    return command.run("o2o.docs", lambda: write(parser.parse_args(argv).directory))


if __name__ == "__main__":
    sys.exit(main())
