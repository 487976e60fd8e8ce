"""What is known about the runs of an engine that verify drafts: their time, and whether they are exact.

An exact run of several tokens computes the bits that decode steps compute, so that drafts change no text. The
first runs of each length are compared with decode steps. Where bits differ, no drafts are used, unless the
caller allows it.

An engine may need some work before the first run of a length, such as to open another graph. Many texts
repeat nothing. So this work waits until the drafts that were not used would have saved as much time.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import Counter, deque

TRIALS = 2
"""Runs of each length that are compared with decode steps."""
COST_PER_TOKEN = 0.11
"""What each further token of a run adds to the time of a step, before it is measured."""
SAMPLES = 7
"""Runs of each length whose median is the cost of a run."""
RECENT = 5
"""Runs of any length whose median says how long a step takes now: other programs may slow all runs."""
FORGET = 512
"""Measured decode steps after which the cost of an unused length is forgotten: it is tried again."""


class Verification:
    """Runs of T tokens on one engine, compared with decode steps. Any thread may use it."""

    def __init__(self, rounded_drafts: bool = False) -> None:
        """Start without knowledge.

        Args:
            rounded_drafts: See `runtime_py.engines.options.EngineOptions`.
        """
        self._rounded_drafts = rounded_drafts
        self.refused = False
        """Whether runs are not exact, so that no drafts are used."""
        self._trials: Counter[int] = Counter()
        self._recent: deque[float] = deque(maxlen=RECENT)  # the time of a step, by each of the last runs
        self._samples: dict[int, deque[float]] = {}
        self._costs: dict[int, float] = {1: 1.0}
        self._first: set[int] = set()  # lengths whose first run, with one-time work, is over
        self._unused: dict[int, int] = {}
        self._missed: dict[int, float] = {}  # steps that drafts of a length would have saved
        self._changing = threading.Lock()

    def needs_trial(self, length: int) -> bool:
        """Return whether the next run of a length is to be compared with a decode step.

        Args:
            length: T.

        Returns:
            True for the first runs, unless rounding does not matter.
        """
        return not self._rounded_drafts and self._trials[length] < TRIALS

    def compared(self, length: int, exact: bool) -> None:
        """Record a comparison.

        Args:
            length: T.
            exact: Whether the run computed the bits of the decode step.
        """
        with self._changing:
            self._trials[length] += 1
            self.refused |= not exact

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
            if length > 1 and self._recent:
                samples = self._samples.setdefault(length, deque(maxlen=SAMPLES))
                samples.append(seconds / statistics.median(self._recent))
                self._costs[length] = statistics.median(samples)
                self._unused[length] = 0
            if (cost := self._costs.get(length)) is not None:
                self._recent.append(seconds / cost)
            if length == 1:
                for other in [*self._unused]:
                    self._unused[other] += 1
                    if self._unused[other] > FORGET:
                        del self._unused[other], self._samples[other], self._costs[other]

    def pays_setup(self, length: int, saved: float, setup: float) -> bool:
        """Return whether the one-time work for runs of a length is worth its time. Call it once a token.

        Args:
            length: T.
            saved: Steps that a draft would save for each of its tokens.
            setup: Seconds of the one-time work (`runtime_py.engines.engine.Engine.verify_setup`).

        Returns:
            True if there is none, or drafts would have saved its time by now.
        """
        if not setup:
            return True
        with self._changing:
            self._missed[length] = self._missed.get(length, 0.0) + saved
            step = statistics.median(self._recent) if self._recent else 0.0
            return self._missed[length] * step >= setup

    def cost(self, length: int) -> float:
        """Return the time of a run relative to a decode step.

        Args:
            length: T.

        Returns:
            The median of its last runs; an optimistic guess before they are measured. Infinity if runs are
            not exact.
        """
        if self.refused:
            return math.inf
        return self._costs.get(length, 1 + COST_PER_TOKEN * (length - 1))
