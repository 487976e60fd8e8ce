"""The filters: one module each, named after its command (`fuse.attention.py` is `fuse_attention`)."""

from __future__ import annotations

import pkgutil


def names() -> list[str]:
    """The module names of all filters, in alphabetical order, without importing any."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("base", "fusion")
    )
