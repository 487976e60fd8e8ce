"""Drafts that are copied from the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.generation.prompt_lookup import MAX_MATCH, SHORTEST_NGRAM, PromptLookup


@pytest.mark.parametrize(
    ("ids", "count", "draft"),
    [
        ([1, 2, 3, 4, 5, 9, 2, 3], 3, [4, 5, 9]),
        ([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 2, [3, 8]),  # three common tokens rather than two, though earlier
        ([1, 2, 3, 5, 1, 2, 4, 5, 1, 2], 2, [4, 5]),  # the latest of equal ones
        ([1, 2, 3, 1, 2, 3], 7, [1, 2, 3, 1, 2, 3, 1]),  # the draft goes on in itself
        ([5, 5, 5], 4, [5, 5, 5, 5]),
        ([1, 2, 3, 4], 3, []),
        ([1], 3, []),
    ],
)
def test_what_is_drafted(ids: list[int], count: int, draft: list[int]) -> None:
    assert PromptLookup(ids).draft(count) == draft


@given(st.lists(st.integers(0, 2), min_size=1, max_size=80), st.integers(0, 20))
def test_a_draft_continues_the_longest_common_end(ids: list[int], split: int) -> None:
    """Prompt or generated text makes no difference, and what is claimed about the earlier place is true."""
    split = max(1, min(split, len(ids)))
    lookup = PromptLookup(ids[:split])
    for token in ids[split:]:
        lookup.append(token)
    repeats = [
        ids[-SHORTEST_NGRAM:] == ids[at : at + SHORTEST_NGRAM] for at in range(len(ids) - SHORTEST_NGRAM)
    ]
    assert bool(lookup.match) == (len(ids) > SHORTEST_NGRAM and any(repeats))
    if lookup.match:
        common = ids[-lookup.match :] + lookup.draft(1)
        assert any(ids[at : at + len(common)] == common for at in range(len(ids) - lookup.match))
        assert lookup.match <= MAX_MATCH


def test_expectations_follow_what_happens() -> None:
    repeating, random = PromptLookup([1, 2, 3]), PromptLookup([1, 2, 3])
    before = repeating.expected(7)
    for index in range(60):
        repeating.append([1, 2, 3][index % 3])
        random.append([1, 2, index + 10][index % 3])
    for token in (1, 2):
        random.append(token)
    assert before == 0
    assert repeating.expected(7) > 6
    assert 0 < random.expected(7) < 0.5
