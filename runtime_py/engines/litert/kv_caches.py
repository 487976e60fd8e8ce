"""The keys and values of one text, in caches of the capacity that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import numpy as np

from runtime_py.model.contract import Signature, Slot

Buffer = TypeVar("Buffer")

Made = Mapping[Slot, tuple[Buffer, np.ndarray]]
"""For each cache what the runtime takes for it, and its memory as an array."""


class Caches(Generic[Buffer]):
    """Caches of several capacities, of which two are there at most: the largest, in which prompts are read,
    and the one in which the text goes on.

    Rows are copied from one to the other, once each, when they are needed there.
    """

    def __init__(self, decodes: Mapping[int, Signature], make: Callable[[Signature], Made[Buffer]]) -> None:
        """decodes: see `Contract`. make: new caches for one of these, all zeros: what is masked is still
        multiplied, by 0, so it must be a number."""
        self._decodes = decodes
        self._make = make
        self._made: dict[int, Made[Buffer]] = {}
        self._valid: dict[int, int] = {}  # how many rows of each, from the first on, are the text's
        self._largest = max(decodes)

    def fitting(self, position: int) -> int:
        """The smallest capacity with a row for `position`."""
        return next(capacity for capacity in self._decodes if capacity > position)

    def at(self, capacity: int, start: int, stop: int) -> Made[Buffer]:
        """The caches of this capacity, rows 0 to `start` - 1 filled. Whoever gets them fills them to `stop`
        - 1, so that all that was behind `start` is no longer known."""
        made = self._made.get(capacity)
        if made is None:
            made = self._made[capacity] = self._make(self._decodes[capacity])
            self._valid[capacity] = 0
        for other in self._made.keys() - {capacity}:
            self._bring(start, other, capacity)
            self._valid[other] = min(self._valid[other], start)
            if capacity != self._largest and other != self._largest:
                del self._made[other], self._valid[other]
        self._valid[capacity] = stop
        return made

    def _bring(self, rows: int, source: int, target: int) -> None:
        """Copy those of the first `rows` that `target` lacks and `source` has."""
        first, last = self._valid[target], min(rows, self._valid[source])
        if first >= last:
            return
        for slot, cache in self._decodes[target].caches.items():
            where = (slice(None),) * cache.layout.index("T") + (slice(first, last),)
            self._made[target][slot][1][where] = self._made[source][slot][1][where]
        self._valid[target] = last
