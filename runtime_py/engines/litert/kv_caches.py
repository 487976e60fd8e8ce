"""KV caches of one text, in buffers of the capacity that the text needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import numpy as np

from runtime_py.model.contract import SignatureSpec, Slot

Buffer = TypeVar("Buffer")

CacheBuffers = Mapping[Slot, tuple[Buffer, np.ndarray]]
"""For each cache its buffer as the runtime takes it, and the buffer's memory as an array."""


class KVCaches(Generic[Buffer]):
    """KV caches of several capacities (buckets). At most two capacities are allocated.

    These are the largest, which prefills fill, and the one that decode uses. A row is copied from one to the
    other once, when it is first needed there.
    """

    def __init__(
        self, decodes: Mapping[int, SignatureSpec], allocate: Callable[[SignatureSpec], CacheBuffers[Buffer]]
    ) -> None:
        """Set up the caches without allocating any.

        Args:
            decodes: The decode signatures by capacity, as in `Contract`.
            allocate: Returns new buffers for a decode signature, filled with zeros. Masked rows are still
                multiplied, by 0, so they must be finite.
        """
        self.allocated: dict[int, CacheBuffers[Buffer]] = {}
        """The buffers by capacity."""
        self._decodes = decodes
        self._allocate = allocate
        self._valid_rows: dict[int, int] = {}  # by capacity: the number of leading rows that hold the text
        self._largest = max(decodes)

    def smallest_capacity(self, position: int) -> int:
        """Return the smallest capacity with a row for a position.

        Args:
            position: Below the largest capacity.

        Returns:
            A capacity of the decode signatures.
        """
        return next(capacity for capacity in self._decodes if capacity > position)

    def select(self, capacity: int, start: int, stop: int) -> CacheBuffers[Buffer]:
        """Return the buffers of one capacity for a run that writes rows `start` to `stop` - 1.

        Rows from `start` on are no longer valid in other capacities.

        Args:
            capacity: A capacity of the decode signatures.
            start: The first row that the caller writes. Rows before it are valid in the result.
            stop: The end of the rows that the caller writes.

        Returns:
            The buffers.
        """
        buffers = self.allocated.get(capacity)
        if buffers is None:
            buffers = self.allocated[capacity] = self._allocate(self._decodes[capacity])
            self._valid_rows[capacity] = 0
        for other in self.allocated.keys() - {capacity}:
            self._copy_valid(start, other, capacity)
            self._valid_rows[other] = min(self._valid_rows[other], start)
            if capacity != self._largest and other != self._largest:
                del self.allocated[other], self._valid_rows[other]
        self._valid_rows[capacity] = stop
        return buffers

    def copy_rows(self, source: KVCaches[Buffer], start: int, stop: int) -> None:
        """Copy rows from the KV caches of another session.

        Args:
            source: The other session's caches. One of its capacities has all rows below `stop`.
            start: The first row; the rows before it are valid.
            stop: The end of the rows.
        """
        capacity = min(capacity for capacity, valid in source._valid_rows.items() if valid >= stop)
        buffers = self.select(self._largest, start, stop)  # prefills, which usually follow, use the largest
        self._copy(source.allocated[capacity], buffers, start, stop)

    def close(self) -> None:
        """Free all buffers."""
        self.allocated.clear()
        self._valid_rows.clear()

    def _copy_valid(self, count: int, source: int, target: int) -> None:
        """Copy the rows below `count` that are valid in `source` but not in `target`."""
        first, last = self._valid_rows[target], min(count, self._valid_rows[source])
        if first < last:
            self._copy(self.allocated[source], self.allocated[target], first, last)
            self._valid_rows[target] = last

    def _copy(
        self, source: CacheBuffers[Buffer], target: CacheBuffers[Buffer], first: int, last: int
    ) -> None:
        for slot, cache in self._decodes[self._largest].caches.items():
            rows = (slice(None),) * cache.layout.index("T") + (slice(first, last),)
            target[slot][1][rows] = source[slot][1][rows]
