"""The filters: one module each, named after its command (`fuse.attention.py` is `fuse_attention`)."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from o2o.filters.base import Filter

_SHARED = {"__init__", "base", "fusion"}  # modules that are no filter
_OTHERS = {"inspect_model": "inspect"}  # why the command is not `inspect.py`: pyproject.toml


def names() -> list[str]:
    """Return the module names of all filters in alphabetical order, without importing any."""
    files = (os.path.splitext(file) for folder in __path__ for file in os.listdir(folder))
    return sorted(name for name, extension in files if extension == ".py" and name not in _SHARED)


def find(command: str) -> str | None:
    """Return the module name of a command, in any of its spellings, or None if there is no such filter.

    Args:
        command: `rename.io.remove_prefix.py`, with or without `.py`, with `.` or `_` between the words.
    """
    name = os.path.basename(command).removesuffix(".py").replace(".", "_")
    name = _OTHERS.get(name, name)
    return name if name in names() else None


def load(name: str) -> type[Filter]:
    """Import the module `name` of this package and return its filter, the class of that name in CamelCase."""
    module = importlib.import_module(f"{__name__}.{name}")
    found: type[Filter] = getattr(module, "".join(word.capitalize() for word in name.split("_")))
    return found
