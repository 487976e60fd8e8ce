"""Drafts of what a grammar forces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime_py.generation.forced_tokens import ForcedTokens
from runtime_py.generation.logits_processors import ForcesTokens


class Grammar:
    def __call__(self, ids: Sequence[int], logits: np.ndarray) -> np.ndarray:
        return logits

    def forced_tokens(self, ids: Sequence[int]) -> list[int]:
        return [ids[-1] + 1, ids[-1] + 2]


def test_drafts_are_what_is_forced() -> None:
    grammar = Grammar()
    assert isinstance(grammar, ForcesTokens)
    assert ForcedTokens(grammar).draft([1, 7]) == [8, 9]


def test_expectations_follow_what_happens() -> None:
    forced = ForcedTokens(Grammar())
    at_first = forced.expected(3)
    assert len(at_first) == 4
    assert at_first[0] == 0
    assert 2 < at_first[3] < 3
    for _ in range(50):
        forced.add(agrees=True)
    assert forced.expected(3)[3] > 2.9
    for _ in range(50):
        forced.add(agrees=False)
    assert forced.expected(3)[3] < 0.4
