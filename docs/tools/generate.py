"""Write the generated parts of the documentation: pages from help texts, and pictures.

    python -m docs.tools.generate

`make docs` runs it before it builds the site. `tests/docs` compares the files with its output.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from docs.tools import layers, pipeline
from o2o import verbs
from o2o.cli.program import called_as
from o2o.docs import pages as filter_pages

DOCS = Path(__file__).resolve().parents[1]
WIDTH = 96  # of help texts, whatever the terminal's

COMMAND_LINE = """\
# Command line

`o2o VERB ...` runs a verb, and `o2o FILTER ...` runs [a filter](filters/README.md). Each has `--help`
with examples.

- Messages go to stderr, results to stdout.
- The exit code is 0 for success, 1 for a model that cannot be taken, and 2 for wrong usage.
- An error is one line. `--debug` shows the traceback.
- Flags take `_` and `-` alike: `--max_length` and `--max-length` are the same flag.

The older commands do the same work:

| verb | older command |
|---|---|
| `o2o convert` | `make package`, `python -m tinyllama.pipeline` |
| `o2o run`, `o2o chat` | `python -m runtime_py.run`, with `--chat` |
| `o2o bench` | `python -m runtime_py.bench` |
| `o2o perplexity` | `python -m runtime_py.perplexity` |
| `o2o compare` | `python -m runtime_py.quality` |
| `o2o inspect` | `inspect.model.py` |
| `o2o gc`, and each filter by its name | `gc.py` |

This page is generated from the help texts of this version.
"""


def files() -> dict[str, str]:
    """Make all generated files.

    Returns:
        Their texts, by path below docs/.
    """
    return {
        "command-line.md": command_line(),
        "pipeline.svg": pipeline.drawing(),
        "layers.svg": layers.drawing(),
        **{f"filters/{name}": text for name, text in filter_pages().items()},
    }


def command_line() -> str:
    """Make the page of the command line.

    Returns:
        Its text in Markdown: a section for each verb, by group.
    """
    known = verbs.verbs()
    parts = [COMMAND_LINE]
    group = ""
    for verb in known:
        if verb.group != group:
            group = verb.group
            parts.append(f"## {group.capitalize()}\n")
        parts.append(f"### o2o {verb.name}\n\n```text\n{help_of(verb)}```\n")
    return "\n".join(parts)


def help_of(verb: verbs.Verb) -> str:
    """Format the help of a verb, as on a terminal of `WIDTH` columns.

    Args:
        verb: The verb.

    Returns:
        The text.
    """
    with called_as(f"o2o {verb.name}"):
        parser = verb.parser()
    kind = parser.formatter_class
    parser.formatter_class = lambda prog: kind(prog, width=WIDTH)
    return parser.format_help()


def main() -> None:
    """Write all files, and remove pages of filters that no longer exist."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    texts = files()
    for page in (DOCS / "filters").glob("*.md"):
        if f"filters/{page.name}" not in texts:
            page.unlink()
    for name, text in texts.items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    main()
