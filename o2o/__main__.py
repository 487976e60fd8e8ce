"""`python -m o2o FILTER ...` runs a filter, as its own command does (`fuse.attention.py ...`)."""

from __future__ import annotations

import os
import sys

from o2o import filters
from o2o.cli import interrupt

PROGRAM = "python -m o2o"


def main(argv: list[str] | None = None) -> int:
    """Run the filter that the first argument names.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and (name := filters.find(arguments[0])) is not None:
        return filters.load(name).main(arguments[1:])
    from o2o.cli import command

    return command.run(PROGRAM, lambda: _help(arguments), debug="--debug" in arguments)


def script() -> int:
    """Run the filter of this console script. pyproject.toml declares this function for every filter.

    Returns:
        The exit code.
    """
    interrupt.exit_on_interrupt(os.path.basename(sys.argv[0]))
    return main(sys.argv)


def _help(arguments: list[str]) -> int:
    from o2o.errors import UsageError

    if arguments[:1] in ([], ["-h"], ["--help"]):
        sys.stdout.write(f"usage: {PROGRAM} FILTER ...\n\n{listing()}")
        return 0 if arguments else 2
    known = ", ".join(filters.load(name).name.removesuffix(".py") for name in filters.names())
    raise UsageError(f"there is no filter {arguments[0]!r}; there are: {known}")


def listing() -> str:
    """List the filters.

    Returns:
        A line for each: its name and the first line of its docstring.
    """
    import inspect

    commands = [filters.load(name) for name in filters.names()]
    width = max(len(command.name) for command in commands)
    summaries = [(inspect.getdoc(command) or "").splitlines()[0] for command in commands]
    lines = [f"  {command.name:<{width}}  {text}" for command, text in zip(commands, summaries, strict=True)]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    interrupt.exit_on_interrupt(PROGRAM)
    sys.exit(main())
