"""Print what a model or a package contains: the filter `inspect.model.py`."""

from __future__ import annotations

from collections.abc import Sequence

from o2o.cli.arguments import Parser


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    from o2o.filters.inspect import Inspect

    return Inspect().parser()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    from o2o.filters.inspect import Inspect

    return Inspect.main(argv)
