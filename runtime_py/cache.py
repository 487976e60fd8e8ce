"""List, verify or clear the disk cache of packed weights: `o2o cache [list|verify|clear]`."""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("cache")

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.cli.text import counted
from o2o.errors import ModelError, UsageError
from runtime_py.engines.disk_cache import DiskCache, Entry, user_cache


def list_entries(cache: DiskCache) -> None:
    """Print a line for each entry.

    Args:
        cache: The disk cache.
    """
    entries = cache.entries()
    for entry in entries:
        print(_line(entry, "" if entry.intact else "damaged"))
    total = sum(entry.size for entry in entries)
    print(f"{cache.folder}: {counted(len(entries), 'entry', 'entries')}, {total / 1e6:,.1f} MB")


def verify_entries(cache: DiskCache) -> None:
    """Print for each entry whether its files are as they were written.

    Args:
        cache: The disk cache.

    Raises:
        ModelError: An entry is damaged.
    """
    entries = cache.entries()
    for entry in entries:
        print(_line(entry, "intact" if entry.intact else "damaged"))
    if damaged := sum(not entry.intact for entry in entries):
        raise ModelError(
            f"{cache.folder}: {counted(damaged, 'damaged entry', 'damaged entries')}: the next load of the "
            "model replaces it, and `o2o cache clear` removes all"
        )
    print(f"{cache.folder}: {counted(len(entries), 'intact entry', 'intact entries')}")


def clear_entries(cache: DiskCache) -> None:
    """Remove all entries.

    Args:
        cache: The disk cache.

    Raises:
        OSError: An entry cannot be removed.
    """
    print(f"{cache.folder}: removed {cache.clear() / 1e6:,.1f} MB")


ACTIONS: dict[str, Callable[[DiskCache], None]] = {
    "list": list_entries,
    "verify": verify_entries,
    "clear": clear_entries,
}


def parser() -> Parser:
    """Make the command line's parser.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="python -m runtime_py.cache",
        description="The disk cache holds the packed weights of large models, which later loads map into "
        "memory. It is in $O2O_CACHE, or in o2o of the user's cache folder. Removing an entry is always "
        "safe: the next load makes it again.",
        examples=["o2o cache", "o2o cache verify", "o2o cache clear"],
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=tuple(ACTIONS),  # not the dict, which completion takes for subcommands
        default="list",
        help="list: show entries; verify: compare sizes and times of their files with the record; clear: "
        "remove all (%(default)s)",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code: 0; 1 if an entry is damaged or cannot be removed; 2 for wrong usage.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run("cache", lambda: _run(parser().parse_args(arguments)), debug="--debug" in arguments)


def _run(args: argparse.Namespace) -> None:
    cache = user_cache()
    if cache is None:
        raise UsageError("this user has no home folder: name the cache in $O2O_CACHE")
    ACTIONS[args.action](cache)


def _line(entry: Entry, state: str) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_use))
    return f"{entry.key[:12]}  {entry.size / 1e6:>9,.1f} MB  {used}  {state:<8}{entry.label}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
