"""Speed of a generation and peak memory of the process."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from o2o.cli.text import counted
from runtime_py.engines.prefill_plan import Chunk
from runtime_py.generation.session import DraftStats


def peak_memory() -> float:
    """Measure the memory of this process.

    Returns:
        Its largest resident set size so far, in MB (10^6 bytes).
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


@dataclass
class Stats:
    """Stopwatch of one generation. Each time is in seconds, from the end of the previous one."""

    new_tokens: int = 0
    load: float = 0.0
    first: float = 0.0
    """From the prompt's ids to the first new token: prefill and one sampling step."""
    rest: float = 0.0
    """From the first new token to the last: `new_tokens - 1` decode steps."""
    _since: float = field(default_factory=time.perf_counter, repr=False)

    def _lap(self) -> float:
        now = time.perf_counter()
        self._since, lap = now, now - self._since
        return lap

    def loaded(self) -> None:
        """Record that the model is loaded."""
        self.load = self._lap()

    def begin(self) -> None:
        """Record that the prompt is tokenized and generation begins."""
        self._lap()

    def token(self) -> None:
        """Record a new token."""
        if self.new_tokens:
            self.rest += self._lap()
        else:
            self.first = self._lap()
        self.new_tokens += 1

    def report(self, runs: Sequence[Chunk], drafts: DraftStats | None = None) -> str:
        """Return up to five lines for a reader.

        Args:
            runs: The prefill runs that read the prompt.
            drafts: What became of the drafts of the text, or of all texts of the session.

        Returns:
            Load time, speed of prefill and decode, accepted drafts, and peak memory.
        """
        tokens = runs[-1].stop - runs[0].start
        counts = [(length, len(list(group))) for length, group in groupby(run.length for run in runs)]
        lengths = " + ".join(f"{count} x {length}" if count > 1 else f"{length}" for length, count in counts)
        lines = [f"load:    {self.load:.3f} s"] if self.load else []
        lines.append(
            f"prefill: {tokens / self.first:.1f} tokens/s ({tokens} tokens in {lengths}), "
            f"first token after {self.first * 1e3:.1f} ms"
        )
        if self.new_tokens > 1:
            steps = self.new_tokens - 1
            lines.append(f"decode:  {steps / self.rest:.1f} tokens/s ({steps} steps)")
        if drafts is not None and drafts.runs:
            runs_text = counted(drafts.runs, "run")
            lines.append(f"drafts:  {drafts.accepted} of {drafts.drafted} tokens accepted, in {runs_text}")
        return "\n".join([*lines, f"memory:  {peak_memory():.0f} MB at most"])
