"""Delta debugging: a small subset of items for which a test still fails.

Source: A. Zeller and R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", algorithm ddmin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def ddmin(items: Sequence[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """Minimize a list: no single item of the result can be left out.

    Args:
        items: The items, for all of which the test fails.
        fails: Whether the test still fails for some of them.

    Returns:
        The items of a small subset, in their order; at least one of them.
    """
    remaining = list(items)
    parts = 2
    while len(remaining) >= 2:
        size = -(-len(remaining) // parts)
        chunks = [remaining[start : start + size] for start in range(0, len(remaining), size)]
        smaller = next((chunk for chunk in chunks if fails(chunk)), None)
        if smaller is not None:
            remaining, parts = smaller, 2
            continue
        if len(chunks) > 2:
            rests = ([x for other in chunks if other is not chunk for x in other] for chunk in chunks)
            smaller = next((rest for rest in rests if fails(rest)), None)
        if smaller is not None:
            remaining, parts = smaller, max(2, parts - 1)
        elif size == 1:
            break
        else:
            parts = min(len(remaining), 2 * parts)
    return remaining
