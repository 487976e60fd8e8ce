"""The time of runs of several tokens relative to a decode step, measured while texts are generated."""

from __future__ import annotations

import statistics
import threading
from collections import deque

COST_PER_TOKEN = 0.08
"""What each further token of a run adds to the time of a step, before it is measured."""
SAMPLES = 7
"""Runs of each length whose median is the time of a run."""
FORGET = 512
"""Measured decode steps after which the times of an unused length are forgotten: it is tried again."""


class StepCosts:
    """How long a run of T tokens takes relative to a decode step, on one engine. Any thread may use it."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self._first: set[int] = set()  # lengths whose first run, with one-time work, is over
        self._unused: dict[int, int] = {}
        self._changing = threading.Lock()

    def add(self, length: int, seconds: float) -> None:
        """Record the time of a run.

        Args:
            length: T; 1 for a decode step.
            seconds: Its time.
        """
        with self._changing:
            if length not in self._first:
                self._first.add(length)
                return
            samples = self._seconds.setdefault(length, deque(maxlen=SAMPLES))
            samples.append(seconds)
            self._medians[length] = statistics.median(samples)
            self._unused[length] = 0
            if length == 1:
                for other in [*self._unused]:
                    self._unused[other] += 1
                    if self._unused[other] > FORGET:
                        del self._unused[other], self._seconds[other], self._medians[other]

    def relative(self, length: int) -> float:
        """Return the time of a run relative to a decode step.

        Args:
            length: T.

        Returns:
            Its median time over that of a step; an optimistic guess before both are measured.
        """
        step, run = self._medians.get(1), self._medians.get(length)
        return run / step if step and run else 1 + COST_PER_TOKEN * (length - 1)
