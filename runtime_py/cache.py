"""List, verify or clear the disk cache: `o2o cache [list|verify|clear]`."""

from __future__ import annotations

from o2o.cli import interrupt

if __name__ == "__main__":
    interrupt.exit_on_interrupt("cache")

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from o2o.cli.arguments import Parser
from o2o.cli.command import run
from o2o.cli.text import counted
from o2o.errors import ModelError, UsageError
from o2o.streams.disk_cache import DiskCache, user_cache
from o2o.weights.cached_checkpoints import cached_checkpoints


@dataclass(frozen=True)
class Line:
    """An entry or a derived checkpoint, as it is printed.

    Attributes:
        key: Its key.
        label: Its source, for people.
        size: Bytes of its files.
        last_use: In seconds since the epoch.
        problem: Why the next use makes it again: "damaged", "outdated"; empty if it does not.
    """

    key: str
    label: str
    size: int
    last_use: float
    problem: str

    def text(self, state: str) -> str:
        """Format it.

        Args:
            state: What to print about its state.

        Returns:
            The line.
        """
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.last_use))
        return f"{self.key[:12]}  {self.size / 1e6:>9,.1f} MB  {used}  {state:<8}{self.label}".rstrip()


def lines(cache: DiskCache) -> list[Line]:
    """List packed weights and derived checkpoints.

    Args:
        cache: The disk cache.

    Returns:
        The packed weights, the last used first; then the derived checkpoints.
    """
    packed = [
        Line(entry.key, entry.label, entry.size, entry.last_use, "" if entry.intact else "damaged")
        for entry in cache.entries()
    ]
    derived = [
        Line(
            one.key,
            f"checkpoint: {one.model}",
            one.size,
            one.folder.stat().st_mtime,
            "" if one.is_current else "outdated",
        )
        for one in cached_checkpoints(cache.folder)
    ]
    return packed + derived


def list_entries(cache: DiskCache) -> None:
    """Print a line for each entry.

    Args:
        cache: The disk cache.
    """
    entries = lines(cache)
    for entry in entries:
        print(entry.text(entry.problem))
    total = sum(entry.size for entry in entries)
    print(f"{cache.folder}: {counted(len(entries), 'entry', 'entries')}, {total / 1e6:,.1f} MB")


def verify_entries(cache: DiskCache) -> None:
    """Print for each entry whether its files, or its sources, have changed since it was written.

    Args:
        cache: The disk cache.

    Raises:
        ModelError: An entry is damaged or outdated.
    """
    entries = lines(cache)
    for entry in entries:
        print(entry.text(entry.problem or "intact"))
    if problems := Counter(entry.problem for entry in entries if entry.problem):
        counts = " and ".join(
            counted(count, f"{kind} entry", f"{kind} entries") for kind, count in problems.items()
        )
        raise ModelError(
            f"{cache.folder}: {counts}: the next load or conversion of the model replaces it, and "
            "`o2o cache clear` removes all"
        )
    print(f"{cache.folder}: {counted(len(entries), 'intact entry', 'intact entries')}")


def clear_entries(cache: DiskCache) -> None:
    """Remove all entries.

    Args:
        cache: The disk cache.

    Raises:
        OSError: An entry cannot be removed.
    """
    size = cache.clear()
    for checkpoint in cached_checkpoints(cache.folder):
        size += checkpoint.size
        checkpoint.remove()
    print(f"{cache.folder}: removed {size / 1e6:,.1f} MB")


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
        description="The disk cache holds lowered graphs and packed weights of models, which later loads "
        "map into memory, and the measured speeds of engines. It also holds what conversions make: derived "
        "checkpoints of GGUF files, adapters and multimodal models, and traced graphs without weights; and "
        "the prompts of `o2o remember`. It is in $O2O_CACHE, or in o2o of the user's cache folder. Removing "
        "an entry is always safe: the next load or conversion makes it again, and prompts are computed anew.",
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


if __name__ == "__main__":
    sys.exit(main())
