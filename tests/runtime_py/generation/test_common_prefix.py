"""The common prefix of texts."""

from __future__ import annotations

import pytest

from runtime_py.generation.common_prefix import num_shared


@pytest.mark.parametrize(
    ("tokens", "cached", "count"),
    [([1], [1], 0), ([1, 2], [1, 2], 1), ([1, 2, 3], [1, 2], 2), ([1, 2, 3], [2, 2, 3], 0), ([5, 6], [], 0)],
)
def test_the_number_of_shared_tokens(tokens: list[int], cached: list[int], count: int) -> None:
    assert num_shared(tokens, cached) == count
