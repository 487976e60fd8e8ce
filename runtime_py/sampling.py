"""Another name of `runtime_py.generation.sampling`, for code that imports `Sampling` from here."""

from __future__ import annotations

from runtime_py.generation.sampling import GREEDY, Sampler, Sampling, greedy

__all__ = ["GREEDY", "Sampler", "Sampling", "greedy"]
