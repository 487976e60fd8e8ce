"""Drafts that are copied from the text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_py.generation.prompt_lookup import RESUME_WINDOW, PromptLookup

SENTENCE = [*range(10, 40)]


def after(prompt: list[int], text: list[int]) -> PromptLookup:
    lookup = PromptLookup(prompt)
    for token in text:
        lookup.append(token)
    return lookup


@pytest.mark.parametrize(
    ("ids", "count", "draft"),
    [
        ([1, 2, 3, 4, 5, 9, 2, 3], 3, [4, 5, 9]),
        ([1, 2, 3, 5, 1, 2, 4, 5, 1, 2], 2, [4, 5]),  # the latest place
        ([1, 2, 3, 1, 2, 3], 7, [1, 2, 3, 1, 2, 3, 1]),  # the draft goes on in itself
        ([5, 5, 5], 4, [5, 5, 5, 5]),
        ([1, 2, 3, 4], 3, []),
        ([1], 3, []),
    ],
)
def test_what_is_drafted(ids: list[int], count: int, draft: list[int]) -> None:
    assert PromptLookup(ids).draft(count) == draft
    assert after(ids[:1], ids[1:]).draft(count) == draft


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(1, 80))
def test_a_draft_is_copied_from_the_place(ids: list[int], split: int) -> None:
    lookup = after(ids[:split], ids[split:])
    assert 0 <= lookup.place < len(ids)
    if any(ids[-2:] == ids[at : at + 2] for at in range(len(ids) - 2)):
        assert lookup.place
    expected = lookup.expected(9)
    assert len(expected) == 10
    assert all(0 <= later - one <= 1 for one, later in pairwise(expected))
    if lookup.place:
        text = [*ids]
        for token in lookup.draft(9):
            assert token == text[len(text) - len(ids) + lookup.place]
            text.append(token)
    else:
        assert lookup.draft(9) == []
        assert expected[-1] == 0


@pytest.mark.parametrize(
    ("changed", "rest"),
    [
        ([98], SENTENCE[11:]),  # in place of one token: the copy goes on at once
        ([98, 99, 21], SENTENCE[12:]),  # two tokens in place of one
        ([98, 99, 20], SENTENCE[11:]),  # inserted tokens
        ([24], SENTENCE[15:]),  # four tokens are left out
    ],
)
def test_a_copy_resumes_behind_a_change(changed: list[int], rest: list[int]) -> None:
    lookup = after(SENTENCE, SENTENCE[:10] + changed)
    assert lookup.draft(5) == rest[:5]


def test_a_copy_does_not_resume_far_from_the_change() -> None:
    assert after(SENTENCE, [*SENTENCE[:5], 98, 99, SENTENCE[5 + RESUME_WINDOW + 1]]).place == 0


def test_a_template_is_resumed_behind_a_value_that_is_copied_from_elsewhere() -> None:
    """Records are copied from the one before, their values from the prompt."""
    values = [[50, 51, 52], [60, 61], [70, 71, 72, 73]]
    record = [1, 2, 3, 4]
    prompt = [token for value in values for token in [*value, 9]]
    lookup = after(prompt, [*record, *values[0], 5, 6, *record, 60])
    assert lookup.draft(1) == [61]
    lookup.append(61)
    lookup.append(5)
    assert lookup.draft(5) == [6, *record]


def test_what_was_predicted_wrongly_is_less_likely_to_agree() -> None:
    """A counter in a template: what is expected of a draft ends there."""
    text = [token for number in range(100, 104) for token in [1, 2, 3, 4, 5, 6, number, 7, 8, 9]]
    lookup = after([0], [*text, 1, 2, 3])
    expected = lookup.expected(9)
    steps = [later - one for one, later in pairwise(expected)]
    assert steps[2] > 0.7
    assert steps[3] < 0.4 * steps[2]


def test_expectations_follow_what_happens() -> None:
    repeating, random = PromptLookup([1, 2, 3]), PromptLookup([1, 2, 3])
    before = repeating.expected(7)[-1]
    for index in range(60):
        repeating.append([1, 2, 3][index % 3])
        random.append([1, 2, index + 10][index % 3])
    for token in (1, 2):
        random.append(token)
    assert before == 0
    assert repeating.expected(7)[-1] > 6
    assert 0 < random.expected(7)[-1] < 0.5
