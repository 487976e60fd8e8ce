"""How much of the processor other programs use, which makes measurements wrong."""

from __future__ import annotations

import os
import time


class OtherPrograms:
    """The processor time of other programs since this object was created, on Linux."""

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._others = _seconds_of_others()

    @property
    def cores(self) -> float:
        """How many cores they have used in the mean; 0 where the system does not say."""
        if self._others is None or (now := _seconds_of_others()) is None:
            return 0.0
        return max(0.0, now - self._others) / max(0.01, time.perf_counter() - self._begin)


def _seconds_of_others() -> float | None:
    """The processor time of all programs since the system started, without that of this process."""
    try:
        with open("/proc/stat") as stat:
            user, nice, system, _, _, *interrupts = map(int, stat.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    own = os.times()
    busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    return busy - own.user - own.system - own.children_user - own.children_system
