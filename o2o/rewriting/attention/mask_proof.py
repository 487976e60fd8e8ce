"""Proof of what an additive mask means: causality, a window, ALiBi slopes.

The mask is computed at every position (see `causality`). Terms that follow no position are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.operators.masks import HIDDEN_THRESHOLD
from o2o.operators.reference import unknown_sources
from o2o.rewriting.attention.causality import (
    BUDGET,
    AtPosition,
    Keys,
    depends_on_token_positions,
    position_leaf,
)
from o2o.rewriting.matchers import check_no_activation, fail, producer_of

# The largest error of a bias, against the largest bias: float32 rounds more than once.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class MaskMeaning:
    """The meaning of a mask.

    Attributes:
        leaf: The input that holds the position that it follows, or None for a constant mask.
        position: The position of the first query under a constant mask.
        window: The number of keys that a query sees at most; 0 for all.
        slopes: ALiBi's slope of each head, or none.
    """

    leaf: ir.Value | None
    position: int = 0
    window: int = 0
    slopes: tuple[float, ...] = ()


def prove_meaning(
    mask: ir.Value, keys: Keys, heads: int, written: ir.Value | None, exact: bool = False
) -> MaskMeaning:
    """Prove that a mask hides the keys after each query, and what else it does.

    A causal mask has zeros at visible keys. This one may add a constant to each row, which a softmax ignores,
    and slope * distance for each head.

    Args:
        mask: Broadcast to [1, N, T, S].
        keys: The keys in its columns.
        heads: N.
        written: The input that holds the position at which new keys are written, or None without caches.
        exact: Whether entries of visible keys must be 0: sinks see a constant a row.

    Returns:
        Its meaning.

    Raises:
        MatchFailure: It means something else, or cannot be proven.
    """
    terms = list(_terms(mask))
    zero = np.zeros((1, 1, keys.S), np.float32)
    following = [term for term in terms if unknown_sources(term)]
    constant = [AtPosition(term, None, "the mask") for term in terms if not unknown_sources(term)]
    fixed = sum((_by_row(term_at(0), keys) for term_at in constant), zero)
    if not following:
        return _constant_meaning(mask, fixed, keys, heads, exact)
    leaf = position_leaf(mask, "the mask")
    assert leaf is not None
    if leaf is not written:
        fail("the mask follows another position than the cache", mask)

    positions: Sequence[int] = keys.positions
    if fixed.shape[1] == 1 and depends_on_token_positions(mask, leaf, keys):
        positions = sorted({*positions[:: keys.T], positions[-1]})  # these cover each token's position
    all_keys = np.ones((1, keys.S), bool)
    slopes = _slopes(fixed, all_keys)
    if _follows(fixed, all_keys, slopes) and not (exact and fixed.any()):
        fixed = zero  # it adds the same at every position
    else:
        slopes = np.zeros(1)
    if len(positions) * fixed.shape[0] * keys.T * keys.S > BUDGET:
        fail(f"the mask is too large for a proof at {len(positions)} positions", mask)
    window, others = 0, slopes
    terms_at = [AtPosition(term, leaf, "the mask") for term in following]
    for position in reversed(positions):
        numbers = sum((_by_row(term_at(position), keys) for term_at in terms_at), fixed)
        is_visible = _visible(mask, numbers, keys, position)
        if position == positions[-1]:  # here the last query sees the most keys
            seen = int(is_visible[-1].sum())
            window, others = seen if seen < keys.S else 0, _slopes(numbers, is_visible)
        if not np.array_equal(is_visible, keys.visible(position, window)):
            fail(f"the mask is not causal at position {position}", mask)
        if not _follows(numbers, is_visible, others) or (exact and np.where(is_visible, numbers, 0).any()):
            fail(f"the mask biases the scores of visible keys at position {position}", mask)
    return MaskMeaning(leaf, window=window, slopes=_by_head(slopes + others, heads))


def _terms(mask: ir.Value) -> Iterator[ir.Value]:
    """The operands of nested sums."""
    pending = [mask]
    while pending:
        value = pending.pop()
        node = producer_of(value, "ADD")
        if node is None:
            yield value
            continue
        check_no_activation(node)
        pending += [operand for operand in node.inputs if operand is not None]


def _by_row(numbers: np.ndarray, keys: Keys) -> np.ndarray:
    """A term as [N or 1, T or 1, S]."""
    numbers = numbers.reshape((1,) * (4 - numbers.ndim) + numbers.shape)[0]
    return np.broadcast_to(numbers, (*numbers.shape[:2], keys.S))


def _visible(mask: ir.Value, numbers: np.ndarray, keys: Keys, position: int) -> np.ndarray:
    """bool [T, S]: which keys each query sees, the same for all heads."""
    by_head = numbers > HIDDEN_THRESHOLD
    if not (by_head == by_head[:1]).all():
        fail(f"the mask hides other keys from other heads at position {position}", mask)
    return np.broadcast_to(by_head[0], (keys.T, keys.S))


def _constant_meaning(
    mask: ir.Value, numbers: np.ndarray, keys: Keys, heads: int, exact: bool
) -> MaskMeaning:
    is_visible = _visible(mask, numbers, keys, 0)
    seen = np.flatnonzero(is_visible[0])
    if len(seen) == 0 or not is_visible[-1].any():
        fail("the mask hides all keys from a query", mask)
    position, first = int(seen[-1]), int(is_visible[-1].argmax())
    window = min(position + keys.T, keys.S) - first if first else 0
    if not np.array_equal(is_visible, Keys(keys.T, keys.S, appended=False).visible(position, window)):
        fail("the mask is not causal", mask)
    slopes = _slopes(numbers, is_visible)
    if not _follows(numbers, is_visible, slopes) or (exact and np.where(is_visible, numbers, 0).any()):
        fail("the mask biases the scores of visible keys", mask)
    return MaskMeaning(None, position, window, _by_head(slopes, heads))


def _slopes(numbers: np.ndarray, is_visible: np.ndarray) -> np.ndarray:
    """The slope of each head from key to key, in the row with the most visible keys: [N or 1]."""
    row = int(is_visible.sum(-1).argmax())
    seen = np.flatnonzero(is_visible[row])
    if len(seen) < 2:
        return np.zeros(len(numbers))
    entries = numbers[:, min(row, numbers.shape[1] - 1)].astype(np.float64)
    return np.asarray((entries[:, seen[-1]] - entries[:, seen[0]]) / (seen[-1] - seen[0]))


def _follows(numbers: np.ndarray, is_visible: np.ndarray, slopes: np.ndarray) -> bool:
    """Whether the visible entries of each row are a constant plus slope * key."""
    if not slopes.any():
        high = np.where(is_visible, numbers, -np.inf).max(-1)
        return bool((np.where(is_visible, numbers, np.inf).min(-1) >= high).all())
    expected = slopes[:, None, None] * np.arange(numbers.shape[-1])
    error = numbers - expected
    spread = np.where(is_visible, error, -np.inf).max(-1) - np.where(is_visible, error, np.inf).min(-1)
    largest = max(np.abs(expected).max(), np.abs(np.where(is_visible, numbers, 0)).max())
    return bool((spread <= _TOLERANCE * largest).all())


def _by_head(slopes: np.ndarray, heads: int) -> tuple[float, ...]:
    return tuple(float(slope) for slope in np.broadcast_to(slopes, (heads,))) if slopes.any() else ()
