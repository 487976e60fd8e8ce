"""Rows of KV caches outside of an engine: one layout, checked before they are used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime_py.engines.cached_rows import (
    CachedRows,
    RowsDoNotFit,
    by_position,
    check_fit,
    copy_in,
    view_rows,
)
from runtime_py.engines.window_rows import WindowRows
from runtime_py.model.window_size import WindowSize

KEY, VALUE = ("key", 0), ("value", 3)


@pytest.mark.parametrize("layout", ["BTNH", "BNTH", "BNHT"])
def test_one_layout(layout: str) -> None:
    rows = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
    cache = rows[np.newaxis].transpose(["BTNH".index(axis) for axis in layout]).copy()
    np.testing.assert_array_equal(by_position(cache, layout), rows)
    copied = view_rows({KEY: by_position(cache, layout)}, {}, None, 4).copied()
    cache[...] = 0
    np.testing.assert_array_equal(copied.tensors["key.0"], rows[:4])
    copy_in(copied, {KEY: by_position(cache, layout)}, {}, None, 1, 3)
    np.testing.assert_array_equal(by_position(cache, layout)[1:3], rows[1:3])
    assert not by_position(cache, layout)[[0, 3, 4]].any()


def test_window_caches_of_another_size() -> None:
    """Of 9 positions, 6 are held; caches of 4 rows get the last."""
    held, smaller = WindowRows(WindowSize(6, 3)), WindowRows(WindowSize(4, 3))
    held.hold_last(9)
    cache = np.arange(3, 9, dtype=np.float32).reshape(6, 1, 1)
    rows = view_rows({}, {VALUE: cache}, held, 9)
    assert (rows.stop, rows.lowest) == (9, 3)
    target = np.zeros((4, 1, 1), np.float32)
    copy_in(rows, {}, {VALUE: target}, smaller, 0, 9)
    assert target.ravel().tolist() == [5, 6, 7, 8]
    assert (smaller.first, smaller.lowest) == (5, 5)


ROWS = np.zeros((4, 2, 3), np.float32)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"key.1": ROWS},
        {"key.0": ROWS, "value.0": ROWS},
        {"key.0": ROWS[:3]},
        {"key.0": ROWS[:, :1]},
        {"key.0": ROWS.astype(np.float16)},
    ],
)
def test_rows_of_another_model(tensors: dict[str, Any]) -> None:
    caches = {KEY: np.zeros((9, 2, 3), np.float32)}
    check_fit(CachedRows(4, 0, {"key.0": ROWS}), caches, {}, 4)
    with pytest.raises(RowsDoNotFit):
        check_fit(CachedRows(4, 0, tensors), caches, {}, 4)


def test_more_rows_than_the_caches_have() -> None:
    with pytest.raises(RowsDoNotFit):
        check_fit(CachedRows(4, 0, {"key.0": ROWS}), {KEY: np.zeros((3, 2, 3), np.float32)}, {}, 4)
