"""How fast it went, and how much memory it took."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from runtime_py.engines.prefill_plan import Chunk


def peak_memory() -> float:
    """The most memory this process has had resident so far, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


@dataclass
class Stats:
    """Times of one run, in seconds, each counted from the one before it."""

    new_tokens: int = 0
    load: float = 0.0
    first: float = 0.0
    """From the prompt's ids to the first new token: prefill and one choice."""
    rest: float = 0.0
    """From the first new token to the last: `new_tokens - 1` decode steps."""
    _since: float = field(default_factory=time.perf_counter, repr=False)

    def _lap(self) -> float:
        now = time.perf_counter()
        self._since, lap = now, now - self._since
        return lap

    def loaded(self) -> None:
        """The model is ready."""
        self.load = self._lap()

    def begin(self) -> None:
        """The prompt is there: generation begins."""
        self._lap()

    def token(self) -> None:
        """A new token is here."""
        if self.new_tokens:
            self.rest += self._lap()
        else:
            self.first = self._lap()
        self.new_tokens += 1

    def report(self, prefills: Sequence[Chunk]) -> str:
        """Four lines for a reader. prefills: the runs that read the prompt."""
        tokens = prefills[-1].stop - prefills[0].start
        counts = [(length, len(list(runs))) for length, runs in groupby(run.length for run in prefills)]
        lengths = " + ".join(f"{count} x {length}" if count > 1 else f"{length}" for length, count in counts)
        lines = [f"load:    {self.load:.3f} s"] if self.load else []
        lines.append(
            f"prefill: {tokens / self.first:.1f} tokens/s ({tokens} tokens in {lengths}), "
            f"first token after {self.first * 1e3:.1f} ms"
        )
        if self.new_tokens > 1:
            steps = self.new_tokens - 1
            lines.append(f"decode:  {steps / self.rest:.1f} tokens/s ({steps} steps)")
        return "\n".join([*lines, f"memory:  {peak_memory():.0f} MB at most"])
