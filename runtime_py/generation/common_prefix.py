"""The common prefix of texts, as token ids."""

from __future__ import annotations

from collections.abc import Sequence


def num_shared(tokens: Sequence[int], cached: Sequence[int]) -> int:
    """Return how many leading tokens need not be read, because their rows are cached.

    Args:
        tokens: The ids [P] of a text.
        cached: The ids of the cached rows.

    Returns:
        At most P - 1: the last token is always read, for its logits.
    """
    tokens, cached = list(tokens[:-1]), list(cached)
    low, high = 0, min(len(tokens), len(cached))
    while low < high:  # by bisection: comparing slices is much faster than a loop over ids
        middle = (low + high + 1) // 2
        if tokens[low:middle] == cached[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
