"""The machine of a measurement: the name and the cache of its processor."""

from __future__ import annotations

import platform
import re
from pathlib import Path

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name.

    Args:
        cpuinfo: The system's description of the processors.

    Returns:
        Its model, or its architecture where the system does not name the model.
    """
    try:
        match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


def processor_cache(folder: Path = CACHES) -> int:
    """Return the size of the processor's largest cache.

    Args:
        folder: The system's description of the caches of one core.

    Returns:
        Bytes; 0 where the system does not say.
    """
    sizes = []
    for file in folder.glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KMG]?)", file.read_text().strip())
        if match:
            sizes.append(int(match[1]) * UNITS[match[2]])
    return max(sizes, default=0)
