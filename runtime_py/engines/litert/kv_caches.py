"""KV caches of one text, in buffers of the capacity that the text needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import numpy as np

from runtime_py.engines.cached_rows import CachedRows, by_position, check_fit, copy_in, view_rows
from runtime_py.engines.window_rows import WindowRows, move_to_front
from runtime_py.model.contract import SignatureSpec, Slot, TensorSpec
from runtime_py.model.window_size import WindowSize

Buffer = TypeVar("Buffer")

CacheBuffers = Mapping[Slot, tuple[Buffer, np.ndarray]]
"""For each cache its buffer as the runtime takes it, and the buffer's memory as an array."""


class KVCaches(Generic[Buffer]):
    """KV caches of several capacities (buckets). At most two capacities are allocated.

    These are the largest, which prefills fill, and the one that decode uses. A row is copied from one to the
    other once, when it is first needed there.

    Layers with a window may have window caches, which hold the last positions only
    (`runtime_py.engines.window_rows`). Buckets that are small enough have full caches of these layers.
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
        self._windows: dict[int, WindowRows] = {}  # by capacity, if the largest has window caches
        self._largest = max(decodes)
        largest = decodes[self._largest]
        self._window_slots = {slot: of for slot, of in largest.caches.items() if of.role.capacity is not None}
        self._window = largest.window

    def smallest_capacity(self, position: int) -> int:
        """Return the smallest capacity with a row for a position.

        Args:
            position: Below the largest capacity.

        Returns:
            A capacity of the decode signatures.
        """
        return next(capacity for capacity in self._decodes if capacity > position)

    def reusable(self, count: int) -> int:
        """Return how many leading rows a run can continue from.

        Args:
            count: The wanted number, at most the number of tokens that were read.

        Returns:
            `count`; 0 if window caches do not hold the rows before it any more.
        """
        return count if self._capacity_with(count) is not None else 0

    def select(self, capacity: int, start: int, stop: int, length: int | None = None) -> CacheBuffers[Buffer]:
        """Return the buffers of one capacity for a run that writes rows `start` to `stop` - 1.

        Rows from `start` on are no longer valid in other capacities.

        Args:
            capacity: A capacity of the decode signatures.
            start: The first row that the caller writes. Rows before it are valid in the result, of window
                caches those that a query sees. `reusable(start)` is `start`.
            stop: The end of the rows that the caller writes.
            length: The number of rows that the run overwrites; None for `stop` - `start`.

        Returns:
            The buffers.
        """
        buffers = self._allocated(capacity)
        self._move_windows(capacity, start, stop - start if length is None else length)
        for other in self.allocated.keys() - {capacity}:
            self._copy_valid(start, other, capacity)
            self._valid_rows[other] = min(self._valid_rows[other], start)
            if capacity != self._largest and other != self._largest:
                self._free(other)
        self._valid_rows[capacity] = stop
        return buffers

    def first_position(self, capacity: int) -> int:
        """Return the position in row 0 of the window caches.

        Args:
            capacity: One of the allocated capacities.

        Returns:
            The position; 0 if its caches are full.
        """
        return self._windows[capacity].first if self._windows else 0

    def hold_last(self, capacity: int, stop: int) -> int:
        """Let window caches hold the last rows of a run from position 0 that returned its rows.

        Args:
            capacity: The capacity that was selected for it.
            stop: The number of its tokens.

        Returns:
            The first position that they hold.
        """
        if self._windows:
            self._windows[capacity].hold_last(stop)
        return self.first_position(capacity)

    def copy_rows(self, source: KVCaches[Buffer], start: int, stop: int) -> None:
        """Copy rows from the KV caches of another session.

        Args:
            source: The other session's caches. `source.reusable(stop)` is `stop`.
            start: The first row; the rows before it are valid.
            stop: The end of the rows.
        """
        holder = source._capacity_with(stop)
        assert holder is not None
        largest = self._largest  # prefills, which usually follow, use it
        target = self._allocated(largest)
        self._leave(start, largest)
        complete = source._complete(stop)
        for slot, cache in self._full_slots.items():
            _copy(source.allocated[complete][slot][1], target[slot][1], cache, start, stop)
        self._copy_windows(source, holder, largest, stop)
        self._valid_rows[largest] = stop

    def view_rows(self, stop: int) -> CachedRows:
        """View rows.

        Args:
            stop: See `EngineSession.read_rows`.

        Returns:
            The rows. They change with the caches.
        """
        full = self._by_position(self._complete(stop))[0]
        if not self._window_slots:
            return view_rows(full, {}, None, stop)
        holder = self._capacity_with(stop)
        assert holder is not None
        return view_rows(full, self._by_position(holder)[1], self._windows.get(holder), stop)

    def write_rows(self, rows: CachedRows, start: int, stop: int) -> None:
        """Copy rows in.

        Args:
            rows: See `EngineSession.write_rows`.
            start: See `EngineSession.write_rows`.
            stop: See `EngineSession.write_rows`.

        Raises:
            RowsDoNotFit: They belong to another model.
        """
        largest = self._largest
        self._allocated(largest)
        full, windows = self._by_position(largest)
        check_fit(rows, full, windows, stop)
        self._leave(start, largest)
        copy_in(rows, full, windows, self._windows.get(largest), start, stop)
        self._valid_rows[largest] = stop

    def close(self) -> None:
        """Free all buffers."""
        self.allocated.clear()
        self._valid_rows.clear()
        self._windows.clear()

    @property
    def _full_slots(self) -> dict[Slot, TensorSpec]:
        caches = self._decodes[self._largest].caches
        return {slot: cache for slot, cache in caches.items() if slot not in self._window_slots}

    def _by_position(self, capacity: int) -> tuple[dict[Slot, np.ndarray], dict[Slot, np.ndarray]]:
        """Views [rows, K, H] of the caches of a capacity: of full caches, and of window caches."""
        caches, buffers = self._decodes[capacity].caches, self.allocated[capacity]
        views = {slot: by_position(buffers[slot][1], cache.layout) for slot, cache in caches.items()}
        full = {slot: view for slot, view in views.items() if slot not in self._window_slots}
        return full, {slot: view for slot, view in views.items() if slot in self._window_slots}

    def _leave(self, start: int, largest: int) -> None:
        """Let the largest capacity have all rows before `start`, and no other one have later rows."""
        for other in self.allocated.keys() - {largest}:
            self._copy_valid(start, other, largest)
            self._valid_rows[other] = min(self._valid_rows[other], start)

    def _complete(self, stop: int) -> int:
        """The smallest capacity whose full caches hold all rows before `stop`."""
        return min(capacity for capacity, valid in self._valid_rows.items() if valid >= stop)

    def _allocated(self, capacity: int) -> CacheBuffers[Buffer]:
        if capacity not in self.allocated:
            decode = self._decodes[capacity]
            self.allocated[capacity] = self._allocate(decode)
            self._valid_rows[capacity] = 0
            if self._window is not None:
                size = decode.window or WindowSize(capacity, self._window.window)
                self._windows[capacity] = WindowRows(size)
        return self.allocated[capacity]

    def _free(self, capacity: int) -> None:
        del self.allocated[capacity], self._valid_rows[capacity]
        self._windows.pop(capacity, None)

    def _holds(self, capacity: int, position: int) -> bool:
        """Whether the window caches of a capacity hold what a query at a position sees before it."""
        windows = self._windows.get(capacity)  # None: another thread has just freed it
        return (
            windows is not None and position <= self._valid_rows.get(capacity, -1) and windows.holds(position)
        )

    def _capacity_with(self, position: int) -> int | None:
        """The smallest capacity whose window caches hold what a query at a position sees; None for none."""
        capacities = sorted(self.allocated)
        if not self._window_slots:
            return self._largest
        return next((one for one in capacities if self._holds(one, position)), None)

    def _move_windows(self, capacity: int, start: int, length: int) -> None:
        """Let the window caches of a capacity hold what a run sees, and make room for its rows."""
        if not self._window_slots:
            return
        if start and not self._holds(capacity, start):
            holder = self._capacity_with(start)
            if holder is None:
                raise ValueError(f"the window caches do not hold the rows before position {start} any more")
            self._copy_windows(self, holder, capacity, start)
        moved = self._windows[capacity].make_room(start, length)
        if moved is not None:
            for slot, cache in self._window_slots.items():
                move_to_front(self.allocated[capacity][slot][1], cache.layout.index("T"), moved)

    def _copy_windows(self, source: KVCaches[Buffer], holder: int, capacity: int, stop: int) -> None:
        """Copy the rows of window caches before position `stop`, from a capacity of `source` to one here."""
        if not self._window_slots:
            return
        held, windows = source._windows[holder], self._windows[capacity]
        has_window_caches = self._decodes[capacity].window is not None
        windows.first, windows.lowest = held.first if has_window_caches else 0, held.lowest
        for slot, cache in self._window_slots.items():
            from_rows, to_rows = source.allocated[holder][slot][1], self.allocated[capacity][slot][1]
            _copy(from_rows, to_rows, cache, 0, stop - held.first, held.first - windows.first)

    def _copy_valid(self, count: int, source: int, target: int) -> None:
        """Copy the rows of full caches below `count` that are valid in `source` but not in `target`."""
        first, last = self._valid_rows[target], min(count, self._valid_rows[source])
        if first < last:
            for slot, cache in self._full_slots.items():
                _copy(self.allocated[source][slot][1], self.allocated[target][slot][1], cache, first, last)
            self._valid_rows[target] = last


def _copy(
    source: np.ndarray, target: np.ndarray, cache: TensorSpec, first: int, last: int, offset: int = 0
) -> None:
    """Copy rows `first` to `last` - 1, to the same rows plus `offset`."""
    before = (slice(None),) * cache.layout.index("T")
    target[(*before, slice(first + offset, last + offset))] = source[(*before, slice(first, last))]
