"""The name of the running command, as the user typed it: it begins usage lines and messages.

A command has several spellings (`o2o run`, `python -m runtime_py.run`). Its module knows the oldest one.
`o2o` replaces it while it runs the command.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_typed: str | None = None
_owner: str | None = None


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


def owner() -> str | None:
    """Return the command that the running command is a step of.

    Returns:
        The name of `steps_of`; None for a command of its own.
    """
    return _owner


@contextlib.contextmanager
def steps_of(name: str) -> Iterator[None]:
    """Let the commands that the block runs be steps of another, which is the one that an interrupt ends.

    Args:
        name: The name of the other command.

    Yields:
        Nothing.
    """
    global _owner
    previous, _owner = _owner, name
    try:
        yield
    finally:
        _owner = previous
