"""Forks: a child process replaces what belongs to threads and engines of its parent.

The threads of the parent do not exist in the child. There a lock that another thread held stays locked
forever, and an engine waits forever for its worker threads, also when it is freed.
"""

from __future__ import annotations

import ctypes
import os
from typing import Protocol
from weakref import WeakSet


class Forked(Protocol):
    """An object that must change in a forked child."""

    def after_fork_in_child(self) -> None:
        """Make the object safe in the child. It runs before any other Python code of the child."""
        ...


_watched: WeakSet[Forked] = WeakSet()


def watch(forked: Forked) -> None:
    """Call `after_fork_in_child` of an object in each forked child, as long as the object exists.

    Args:
        forked: The object. It can be weakly referenced.
    """
    _watched.add(forked)


def never_free(value: object) -> None:
    """Keep an object in memory until the process ends, even after the interpreter has ended.

    Args:
        value: The object.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _after_fork_in_child() -> None:
    for forked in list(_watched):
        forked.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
