"""The number of CPU cores."""

from __future__ import annotations

import os


def cores() -> int:
    """Count the CPU cores of this process.

    Returns:
        The number of cores that it may use.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
