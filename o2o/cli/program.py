"""The name of the running command, as the user typed it: it begins usage lines and messages.

A command has several spellings (`o2o run`, `python -m runtime_py.run`). Its module knows the oldest one.
`o2o` replaces it while it runs the command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_typed: str | None = None


def program_name(default: str) -> str:
    """Return the name of the running command.

    Args:
        default: The name if the command was not called as a verb of `o2o`.

    Returns:
        The name that the user typed.
    """
    return default if _typed is None else _typed


@contextlib.contextmanager
def called_as(name: str) -> Iterator[None]:
    """Give the command that the block runs another name.

    Args:
        name: What the user typed, such as `o2o run`.

    Yields:
        Nothing.
    """
    global _typed
    previous, _typed = _typed, name
    try:
        yield
    finally:
        _typed = previous
