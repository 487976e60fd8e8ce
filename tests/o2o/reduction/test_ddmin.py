"""ddmin finds a subset of which no item can be left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2o.reduction.ddmin import ddmin


@given(st.integers(1, 40), st.sets(st.integers(0, 39), min_size=1, max_size=5))
def test_it_finds_the_items_that_fail_together(count: int, needed: set[int]) -> None:
    needed = {item % count for item in needed}
    tried: list[tuple[int, ...]] = []

    def fails(items: list[int]) -> bool:
        tried.append(tuple(items))
        return needed <= set(items)

    assert ddmin(range(count), fails) == sorted(needed)
    assert all(list(items) == sorted(items) for items in tried)


def test_no_item_can_be_left_out() -> None:
    def fails(items: list[int]) -> bool:
        return sum(items) >= 100

    result = ddmin(range(30), fails)
    assert fails(result)
    assert not any(fails([x for x in result if x != item]) for item in result)


@pytest.mark.parametrize("items", [[], [7]])
def test_short_lists_stay(items: list[int]) -> None:
    assert ddmin(items, lambda _: True) == items
