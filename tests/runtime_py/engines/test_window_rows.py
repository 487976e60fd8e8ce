"""Rows of window caches: each run finds the rows of the window before it, whatever was run before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.engines.window_rows import WindowRows, move_to_front
from runtime_py.model.window_size import WindowSize


@given(st.data(), st.integers(1, 6), st.integers(0, 12))
def test_every_run_sees_its_window(data: st.DataObject, window: int, slack: int) -> None:
    """Runs of any length, padded ones too, at the end of the text or earlier where rows are held."""
    size = WindowSize(window + slack, window)
    windows, cache = WindowRows(size), np.full((1, size.rows, 2), -1)
    text = 0
    for _ in range(data.draw(st.integers(1, 30))):
        position = data.draw(st.integers(0, text))
        length = data.draw(st.integers(1, size.max_tokens))
        if position and not windows.holds(position):
            with pytest.raises(ValueError, match=f"before position {position}"):
                windows.row_of(position, length, [])
            continue
        row = windows.row_of(position, length, [(cache, 1)])
        seen = [*range(max(0, position - window + 1), position)]
        assert cache[0, row - len(seen) : row, 0].tolist() == seen
        assert row + length <= size.rows
        cache[0, row : row + length] = -2  # padding
        text = position + data.draw(st.integers(1, length))
        cache[0, row : row + text - position] = np.arange(position, text)[:, None]
        assert windows.holds(text)


def test_rows_move_once_in_many_steps_and_a_text_can_go_back() -> None:
    windows = WindowRows(WindowSize(20, 8))
    moved = [position for position in range(1, 100) if windows.make_room(position, 1) is not None]
    assert np.diff(moved).min() == 7
    windows.make_room(100, 1)
    assert windows.holds(100 - 2)


def test_overlapping_rows_are_moved() -> None:
    cache = np.arange(6)[None, :, None].copy()
    move_to_front(cache, 1, slice(1, 6))
    assert cache[0, :, 0].tolist() == [1, 2, 3, 4, 5, 5]
