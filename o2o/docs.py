"""`python -m o2o.docs [DIRECTORY]`: one page a filter, made of its docstring and its arguments."""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

from o2o import filters
from o2o.cli import command
from o2o.filters.base import Filter

DIRECTORY = Path(__file__).resolve().parent.parent / "docs" / "filters"
WIDTH = 96  # of the usage text, whatever the terminal's

INDEX = """\
# The filters

Each reads a model on stdin (or from a file), changes it, and writes it to stdout (or to `-o FILE`). What it
has to say goes to stderr. It exits with 0 when it did what it was asked to, with 1 for a model that it
cannot take, with 2 for wrong usage or a selector that matches nothing; then one line says what was wrong, and
nothing is written. Each that writes a model adds an entry to its history.

These pages are made by `python -m o2o.docs` from the docstrings.

"""


def pages() -> dict[str, str]:
    """File name -> text, of every page."""
    found = {filter_.name: filter_ for filter_ in map(filters.load, filters.names())}
    told = {f"{name}.md": page(filter_) for name, filter_ in found.items()}
    rows = [f"- [`{name}`]({name}.md): {_paragraphs(filter_)[0]}" for name, filter_ in found.items()]
    return {"README.md": INDEX + "\n".join(rows) + "\n", **told}


def page(filter_: type[Filter]) -> str:
    first, rest = _paragraphs(filter_)
    return (
        f"# {filter_.name}\n\n{first}\n\n{rest}\n\n## Example\n\n```sh\n{filter_.usage_example}\n```\n\n"
        f"## Arguments\n\n```\n{_arguments(filter_)}```\n"
    )


def _paragraphs(filter_: type[Filter]) -> tuple[str, str]:
    """The docstring's first sentence, and the rest, whose drawings Markdown shows as code as they are."""
    first, _, rest = (inspect.getdoc(filter_) or "").partition("\n")
    return first.strip(), rest.strip("\n")


def _arguments(filter_: type[Filter]) -> str:
    parser = filter_().parser()
    parser.description = parser.epilog = None
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=WIDTH)
    return parser.format_help()


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    told = pages()
    for old in directory.glob("*.md"):
        if old.name not in told:
            old.unlink()
    for name, text in told.items():
        (directory / name).write_text(text)


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    return command.run("o2o.docs", lambda: write(Path(arguments[0]) if arguments else DIRECTORY))


if __name__ == "__main__":
    sys.exit(main())
