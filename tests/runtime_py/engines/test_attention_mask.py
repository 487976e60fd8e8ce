"""Causal masks that a model takes as an input."""

from __future__ import annotations

import numpy as np
import pytest

from runtime_py.engines.attention_mask import fill_mask


@pytest.mark.parametrize("dtype", ["float32", "float16", "bool", "int32"])
def test_each_query_sees_the_keys_up_to_its_own(dtype: str) -> None:
    mask = np.zeros((1, 1, 2, 6), dtype)
    fill_mask(mask, 3, 2, 2)
    visible = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]], bool)
    if dtype.startswith("float"):
        assert np.array_equal(mask[0, 0] == 0, visible)
        assert np.isfinite(mask).all()
        assert mask.min() < -1e4
    else:
        assert np.array_equal(mask[0, 0].astype(bool), visible)


def test_a_mask_of_keys_has_ones_where_tokens_are() -> None:
    mask = np.full((1, 6), 7, np.int64)
    fill_mask(mask, 2, 2, 3)
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0]]


def test_one_row_for_all_queries_sees_the_last_token() -> None:
    mask = np.zeros((1, 1, 1, 6), bool)
    fill_mask(mask, 2, 2, 3)
    assert mask.reshape(-1).tolist() == [True] * 4 + [False] * 2
