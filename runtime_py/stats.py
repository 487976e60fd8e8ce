"""How fast it went, and how much memory it took."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass, field


def peak_memory() -> float:
    """The most memory this process has had resident so far, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


@dataclass
class Stats:
    """Times of one run, in seconds, each counted from the one before it."""

    prompt_tokens: int = 0
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

    def loaded(self, prompt_tokens: int) -> None:
        """The model is ready and the prompt's ids are known: generation begins."""
        self.load = self._lap()
        self.prompt_tokens = prompt_tokens

    def token(self) -> None:
        """A new token is here."""
        if self.new_tokens:
            self.rest += self._lap()
        else:
            self.first = self._lap()
        self.new_tokens += 1

    def report(self) -> str:
        """Four lines for a reader."""
        lines = [
            f"load:    {self.load:.3f} s",
            f"prefill: {self.prompt_tokens / self.first:.1f} tokens/s ({self.prompt_tokens} tokens), "
            f"first token after {self.first * 1e3:.1f} ms",
        ]
        if self.new_tokens > 1:
            steps = self.new_tokens - 1
            lines.append(f"decode:  {steps / self.rest:.1f} tokens/s ({steps} steps)")
        return "\n".join([*lines, f"memory:  {peak_memory():.0f} MB at most"])
