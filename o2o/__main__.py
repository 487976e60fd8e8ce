"""The command `o2o VERB ...` or `o2o FILTER ...`. `python -m o2o` is the same command.

`o2o gc` runs a filter, as its own command does (`gc.py`). Verbs are found by `o2o.verbs`.
"""

from __future__ import annotations

import os
import sys

from o2o import filters
from o2o.cli import interrupt

PROGRAM = "o2o"
MODULE = "python -m o2o"

USAGE = """\
usage: {program} VERB ...      {program} FILTER ...      {program} --help | --version
From a checkpoint to a package for a device. VERB --help explains a verb."""
FILTERS = "Filters: each is a command too, such as gc.py (`o2o filters` explains them)"
WIDTH = 80


def main(argv: list[str] | None = None, program: str = MODULE) -> int:
    """Run the filter or the verb that the first argument names.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.
        program: What the user typed before them.

    Returns:
        The exit code.
    """
    word, *rest = arguments = list(sys.argv[1:] if argv is None else argv) or [""]
    if word == "help":  # `o2o help run` is `o2o run --help`
        word, *rest = [*rest[:1], "--help"]
    if (name := filters.find(word)) is not None:
        if program == MODULE:  # the older spelling: the filter keeps its own name in messages
            return filters.load(name).main(rest)
        from o2o.cli.program import called_as

        with called_as(f"{program} {word}"):
            return filters.load(name).main(rest)
    from o2o import verbs
    from o2o.cli import command
    from o2o.cli.program import called_as

    if not word.startswith("-") and (verb := verbs.find(word)) is not None:
        with called_as(f"{program} {word}"):
            return command.run(word, lambda: verb.main(rest), debug="--debug" in rest)
    return command.run(program, lambda: _help(word, program), debug="--debug" in arguments)


def script() -> int:
    """Run this console script: `o2o`, or a filter. pyproject.toml declares this function for all of them.

    Returns:
        The exit code.
    """
    name = os.path.basename(sys.argv[0])
    if name != PROGRAM:
        interrupt.exit_on_interrupt(name)
        return main(sys.argv)
    word = sys.argv[1] if len(sys.argv) > 1 else "-"
    interrupt.exit_on_interrupt(PROGRAM if word.startswith("-") else f"{PROGRAM} {word}")
    return main(sys.argv[1:], PROGRAM)


def _help(word: str, program: str) -> int:
    """Raises UsageError for an unknown word."""
    from o2o.errors import UsageError

    if word in ("", "-h", "--help"):
        sys.stdout.write(overview(program))
        return 0 if word else 2
    if word == "--version":
        from o2o import __version__

        sys.stdout.write(f"{program} {__version__}\n")
        return 0
    from o2o import verbs
    from o2o.cli.arguments import suggestion

    names = [*(verb.name for verb in verbs.verbs()), *map(_spelling, filters.names())]
    near = suggestion(word.removesuffix(".py"), names) or f": `{program} --help` lists them"
    raise UsageError(f"there is no verb or filter {word!r}{near}")


def overview(program: str) -> str:
    """Write the help: all verbs with their summaries, and the names of all filters.

    Args:
        program: What the user typed.

    Returns:
        The text, which fits a screen.
    """
    import textwrap
    from itertools import groupby

    from o2o import verbs

    known = verbs.verbs()
    width = max((len(verb.name) for verb in known), default=0)
    lines = [USAGE.format(program=program)]
    for group, members in groupby(known, key=lambda verb: verb.group):
        lines.append(group.capitalize())
        lines += [f"  {verb.name:<{width}}  {verb.summary}" for verb in members]
    names = "  ".join(map(_spelling, filters.names()))
    indented = textwrap.fill(
        names, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )
    return "\n".join([*lines, FILTERS, indented, ""])


def _spelling(module: str) -> str:
    """The command of a filter's module, without `.py`. The first line of the module names it."""
    from o2o.verbs import first_line

    line = first_line(f"{filters.__name__}.{module}")
    return line.rpartition("`")[0].rpartition("`")[2].removesuffix(".py") or module.replace("_", ".")


if __name__ == "__main__":
    interrupt.exit_on_interrupt(MODULE)
    sys.exit(main())
