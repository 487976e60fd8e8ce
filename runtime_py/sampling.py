"""Another name of `runtime_py.generation.sampling`, for code that imports `Sampling` from here."""

from __future__ import annotations

from runtime_py.generation.sampling import GREEDY, Sampling

__all__ = ["GREEDY", "Sampling"]
