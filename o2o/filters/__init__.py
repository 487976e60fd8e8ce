"""The filters: one module each, named after its command (`fuse.attention.py` is `fuse_attention`).

To add a filter:

    o2o/filters/NAME.py                a subclass of `base.Filter`
    pyproject.toml                     its command, in `[project.scripts]`
    tests/o2o/filters/test_NAME.py     its tests; `test_manners.py` lists what a run of it needs
    make docs                          writes its page in docs/filters
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from o2o.filters.base import Filter

_SHARED = {"__init__", "base", "fusion", "onnx_raising", "pipeline", "recorded_pipelines"}  # no filters
_OTHERS = {
    "inspect_model": "inspect",  # why the command is not `inspect.py`: pyproject.toml
    "with": "with_file",  # a keyword is no name of a module
}
OLDER_NAMES = {
    "retype.input_ids.py": "downcast.input_ids.py",
    "transpose.io.kcache.py": "transpose.io.kvcache.py",
    "merge.circle.py": "merge.circles.py",
}
"""Commands of earlier versions of ONE's tools, and the commands of the same filters today."""


def names() -> list[str]:
    """List the modules of all filters, without importing any.

    Returns:
        Their names in alphabetical order.
    """
    files = (os.path.splitext(file) for folder in __path__ for file in os.listdir(folder))
    return sorted(name for name, extension in files if extension == ".py" and name not in _SHARED)


def find(command: str) -> str | None:
    """Find the module of a command.

    Args:
        command: `rename.io.remove_prefix.py`, with or without `.py`, with `.` or `_` between the words; also
            an older name.

    Returns:
        The name of the module, or None if there is no such filter.
    """
    older = {_module(name): _module(today) for name, today in OLDER_NAMES.items()}
    name = _module(os.path.basename(command))
    name = older.get(name, _OTHERS.get(name, name))
    return name if name in names() else None


def _module(command: str) -> str:
    return command.removesuffix(".py").replace(".", "_")


def load(name: str) -> type[Filter]:
    """Import the module of a filter, which is a module of this package.

    Args:
        name: The module's name.

    Returns:
        The class named like the module, in CamelCase.
    """
    module = importlib.import_module(f"{__name__}.{name}")
    filter_: type[Filter] = getattr(module, "".join(word.capitalize() for word in name.split("_")))
    return filter_
