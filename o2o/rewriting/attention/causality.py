"""Proof that a mask is causal: it is computed at every position.

An exporter spreads an additive mask over a dozen operators. It is a function of one integer, the position of
the first token, or a constant. There are at most as many positions as the cache has rows, so the proof is
exhaustive. At each position, visible entries must be 0, and hidden ones so negative that their softmax weight
is exactly 0 in float32. With several tokens fewer positions suffice if `token_axis` proves that a token's row
does not depend on its place among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.operators.masks import HIDDEN_THRESHOLD
from o2o.operators.reference import NotEvaluable, evaluate, function_of, unknown_sources
from o2o.rewriting.attention.token_axis import token_axis
from o2o.rewriting.matchers import fail

# The most mask entries, over all positions, that a proof computes: more would take seconds.
BUDGET = 1 << 27


@dataclass(frozen=True)
class Keys:
    """The keys in the columns of scores [T, S].

    Attributes:
        T: The number of queries.
        past: The number of cache rows, which come first. 0 without a cache.
        appended: Whether the T new keys follow the cache rows (CONCATENATION, or no cache). Else they are
            written into the cache at the position.
    """

    T: int
    past: int
    appended: bool

    @property
    def S(self) -> int:
        return self.past + self.T if self.appended else self.past

    @property
    def positions(self) -> range:
        """The positions of the first token at which the attention is defined."""
        if self.past == 0:
            return range(1)
        return range(self.past - self.T + 1)

    def visible(self, position: int, window: int = 0) -> np.ndarray:
        """Return which keys each query of a causal model sees.

        Args:
            position: The position of the first token.
            window: How many keys a query sees at most, not for appended keys; 0 for all.

        Returns:
            bool [T, S].
        """
        query = np.arange(self.T)[:, None]
        key = np.arange(self.S)[None, :]
        if not self.appended:
            return (key <= position + query) & (
                key > position + query - (window or position + self.T + self.S)
            )
        return np.where(key < self.past, key < position, key - self.past <= query)


def position_leaf(value: ir.Value, what: str) -> ir.Value | None:
    """Return the one unknown integer from which `value` is computed.

    Args:
        value: A mask or a start index.
        what: What `value` is, for the message.

    Returns:
        The unknown, or None if `value` is constant.

    Raises:
        MatchFailure: There are several unknowns, or the unknown is no integer.
    """
    unknown = unknown_sources(value)
    if not unknown:
        return None
    if len(unknown) > 1:
        names = ", ".join(v.name or "?" for v in unknown)
        fail(f"{what} depends on {names}: not on a position alone", value)
    leaf = unknown[0]
    if leaf.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        fail(f"{what} depends on {leaf.name}, which is not a position: its dtype is {leaf.dtype}", value)
    return leaf


class AtPosition:
    """A value as a function of the position of the first token."""

    def __init__(self, value: ir.Value, leaf: ir.Value | None, what: str) -> None:
        """Prepare the function.

        Args:
            value: A mask or a start index.
            leaf: The unknown from which it is computed (`position_leaf`).
            what: What `value` is, for the message.

        Raises:
            MatchFailure: An operator has no reference kernel.
        """
        self.value, self.what, self._leaf = value, what, leaf
        self._numbers: np.ndarray | None = None
        try:
            if leaf is None:
                self._numbers = evaluate(value, {})
            else:
                self._compute = function_of(value, leaf)
                self._steps = np.arange(math.prod(shape_of(leaf)), dtype=leaf.dtype.numpy())  # type: ignore[union-attr]
        except NotEvaluable as reason:
            fail(f"{what} cannot be computed: {reason}", value)

    def __call__(self, position: int) -> np.ndarray:
        """Compute the value.

        Args:
            position: The position of the first token.

        Returns:
            The numbers of the value.

        Raises:
            MatchFailure: An operator has no reference kernel for these operands.
        """
        if self._leaf is None or self._numbers is not None:
            assert self._numbers is not None
            return self._numbers
        steps = self._steps + self._steps.dtype.type(position)
        try:
            return self._compute(steps.reshape(shape_of(self._leaf)))
        except NotEvaluable as reason:
            fail(f"{self.what} cannot be computed: {reason}", self.value)


def at_position(value: ir.Value, leaf: ir.Value | None, position: int, what: str) -> np.ndarray:
    """Compute a value for tokens that start at one position. `AtPosition` is faster for several.

    Args:
        value: A mask or a start index.
        leaf: The unknown from which it is computed (`position_leaf`).
        position: The position of the first token.
        what: What `value` is, for the message.

    Returns:
        The numbers of `value`.

    Raises:
        MatchFailure: An operator has no reference kernel.
    """
    return AtPosition(value, leaf, what)(position)


def prove_causal(mask: ir.Value, keys: Keys) -> ir.Value | None:
    """Prove that a mask is causal at every position.

    Args:
        mask: [.., T or 1, S].
        keys: The keys in its columns.

    Returns:
        The position that it follows, or None for a constant mask.

    Raises:
        MatchFailure: The mask is not causal, or cannot be proven to be.
    """
    leaf = position_leaf(mask, "the mask")
    if leaf is not None and math.prod(shape_of(leaf)) not in (1, keys.T):
        fail(f"the mask depends on {leaf.name}, which is not a position of {keys.T} tokens", mask)
    positions: Sequence[int] = keys.positions
    if leaf is None and len(positions) > 1:
        fail("the mask is the same at every position, so it does not hide the unused rows of the cache", mask)
    if leaf is not None and depends_on_token_positions(mask, leaf, keys):
        positions = sorted({*positions[:: keys.T], positions[-1]})  # these cover each token's position
    if len(positions) * keys.T * keys.S > BUDGET:
        fail(f"the mask is too large for a proof at {len(positions)} positions", mask)
    mask_at = AtPosition(mask, leaf, "the mask")
    for position in positions:
        numbers = np.broadcast_to(mask_at(position), (1, 1, keys.T, keys.S))[0, 0]
        visible = keys.visible(position)
        if not (np.all(numbers[visible] == 0) and np.all(numbers[~visible] <= HIDDEN_THRESHOLD)):
            fail(f"the mask is not causal at position {position}", mask)
    return leaf


def prove_start(start: ir.Value, keys: Keys, axis: int) -> ir.Value:
    """Prove where DYNAMIC_UPDATE_SLICE writes: at the position on the token axis, at 0 on all others.

    Args:
        start: The start index, one number per axis.
        keys: The keys of the attention.
        axis: The token axis.

    Returns:
        The position that `start` follows.

    Raises:
        MatchFailure: It writes elsewhere, or the place cannot be proven.
    """
    leaf = position_leaf(start, "the row that is written")
    if leaf is None:
        fail("the cache is always written at the same row", start)
    if math.prod(shape_of(leaf)) not in (1, keys.T):
        fail(f"the written row depends on {leaf.name}, which is not a position of {keys.T} tokens", start)
    start_at = AtPosition(start, leaf, "the row that is written")
    for position in keys.positions:
        numbers = start_at(position)
        if [int(n) for n in numbers] != [position if i == axis else 0 for i in range(len(numbers))]:
            fail(f"at position {position} the cache is written at {numbers.tolist()}", start)
    return leaf


def prove_position(position: ir.Value, keys: Keys) -> ir.Value:
    """Prove that a value is the position of the first query.

    Args:
        position: int [1].
        keys: The keys of the attention.

    Returns:
        The input that it follows.

    Raises:
        MatchFailure: It is another number at some position, or cannot be computed.
    """
    leaf = position_leaf(position, "the position")
    if leaf is None:
        fail("the position is always the same", position)
    if position is leaf and shape_of(leaf) == (1,):
        return leaf
    position_at = AtPosition(position, leaf, "the position")
    for first in keys.positions:
        numbers = position_at(first).reshape(-1)
        if numbers.tolist() != [first]:
            fail(f"the position of the queries is {numbers.tolist()} at position {first}", position)
    return leaf


def depends_on_token_positions(mask: ir.Value, leaf: ir.Value, keys: Keys) -> bool:
    """Whether each row of `mask` depends on its token's position alone, as in a causal mask.

    Args:
        mask: [.., T, S].
        leaf: The position that it follows.
        keys: The keys in its columns.

    Returns:
        True if that is proven.
    """

    def counts(vector: ir.Value) -> bool:
        vector_at = AtPosition(vector, leaf, "the mask")
        steps = vector_at(0).reshape(-1)[:1] + np.arange(keys.T)
        return all(
            np.array_equal(vector_at(position).reshape(-1), steps + position) for position in keys.positions
        )

    return keys.T > 1 and not keys.appended and token_axis(mask, leaf, keys.T, counts) == -2
