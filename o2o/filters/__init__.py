"""The filters: one module each, named after its command (`fuse.attention.py` is `fuse_attention`)."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from o2o.filters.base import Filter


def names() -> list[str]:
    """The module names of all filters, in alphabetical order, without importing any."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("base", "fusion")
    )


def load(name: str) -> type[Filter]:
    """The filter in module `name`, which is imported."""
    found: type[Filter] = importlib.import_module(f"{__name__}.{name}").main.__self__
    return found
