"""Which positions of a text the rows of its window caches hold.

A window cache has fewer rows than the text has positions (`o2o.contract`): row r holds position `first` + r.
When a run needs a row beyond the last, the newest rows move to the front.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from runtime_py.model.window_size import WindowSize


class WindowRows:
    """The positions in the window caches of one text.

    Attributes:
        size: The size of the caches.
        first: The position in row 0.
        lowest: The first position whose row the caches hold.
    """

    def __init__(self, size: WindowSize) -> None:
        """Start with an empty text.

        Args:
            size: The size of the caches.
        """
        self.size = size
        self.first = self.lowest = 0

    def holds(self, position: int) -> bool:
        """Whether a run can start at a position: the caches hold all that its first query sees before it.

        Args:
            position: At most the number of tokens that were read.

        Returns:
            True if they do.
        """
        return self.lowest <= max(0, position - self.size.window + 1)

    def copy(self, other: WindowRows) -> None:
        """Follow window caches of the same size whose rows were copied.

        Args:
            other: The positions in these caches.
        """
        self.first, self.lowest = other.first, other.lowest

    def row_of(self, position: int, length: int, caches: Iterable[tuple[np.ndarray, int]]) -> int:
        """Make room for a run, and return the row of its first token.

        Args:
            position: The position of its first token.
            length: See `make_room`.
            caches: The window caches, and the axis of the rows of each. Rows may be moved.

        Returns:
            The row, for the input `window_row`.

        Raises:
            ValueError: The caches do not hold what the run sees.
        """
        if position and not self.holds(position):
            raise ValueError(f"the window caches do not hold the rows before position {position} any more")
        if (moved := self.make_room(position, length)) is not None:
            for rows, axis in caches:
                move_to_front(rows, axis, moved)
        return position - self.first

    def hold_last(self, stop: int, lowest: int = 0) -> None:
        """Hold the last rows of a run from position 0 that returned its rows.

        Args:
            stop: The number of its tokens.
            lowest: The first position whose row was returned.
        """
        self.first = self.lowest = max(lowest, stop - self.size.rows)

    def make_room(self, position: int, length: int) -> slice | None:
        """Choose what row 0 holds from now on, before a run. `holds` is true for its position, or it is 0.

        Args:
            position: The position of the first token of the run.
            length: T, the number of rows that it writes, at most `max_tokens`.

        Returns:
            The rows that must move to the front first; None for none.
        """
        if position == 0:
            self.first = self.lowest = 0
            return None
        stop = position - self.first
        if stop + length <= self.size.rows:
            return None
        spare = self.size.max_tokens  # rows that a query at `position` does not see
        remaining = min(stop, self.size.window - 1 + min(spare - length, spare // 2))
        self.first = position - remaining
        self.lowest = max(self.lowest, self.first)
        return slice(stop - remaining, stop)


def move_to_front(rows: np.ndarray, axis: int, moved: slice) -> None:
    """Move rows of a cache to its front, in place.

    Args:
        rows: The cache.
        axis: The axis of the rows.
        moved: The rows.
    """
    by_row = np.moveaxis(rows, axis, 0)
    by_row[: moved.stop - moved.start] = by_row[moved]
