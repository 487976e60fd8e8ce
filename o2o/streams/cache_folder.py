"""The folder in which commands store what later runs reuse."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """Return the user's cache folder of this program. It may not exist yet.

    Returns:
        $O2O_CACHE, else `o2o` of the user's cache folder ($XDG_CACHE_HOME, ~/.cache); None for a user without
        a home folder.
    """
    if named := os.environ.get("O2O_CACHE"):
        return Path(named)
    # The XDG specification says to ignore a relative path.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "o2o"
    except RuntimeError:
        return None
