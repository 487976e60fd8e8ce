"""The size of the window caches of a signature."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WindowSize:
    """The size of the window caches of a signature, which all have the same.

    Attributes:
        rows: R.
        window: W, the largest window of their layers: a query sees the last W keys, up to its own.
    """

    rows: int
    window: int

    @property
    def max_tokens(self) -> int:
        """The most tokens that a run can read."""
        return self.rows - self.window + 1
