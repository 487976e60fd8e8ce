"""Proving that a mask is the causal one, by computing it at every position there is.

An additive mask that exporters scatter over a dozen operators is a function of one integer, the position of
the first token, or of nothing. There are at most as many positions as the cache has rows, so the proof is
exhaustive: at each of them every visible entry must be 0 and every hidden one so negative that its softmax
weight is exactly 0 in float32. Of several tokens each may have had its position before, as another one of
them: `tokens` tells whether it sees the same then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.operators.masks import HIDDEN_THRESHOLD
from o2o.operators.reference import NotEvaluable, evaluate, unknown_sources
from o2o.rewriting.attention.tokens import token_axis
from o2o.rewriting.matchers import fail

# Above this many mask entries over all positions a proof would take seconds: say so instead.
BUDGET = 1 << 27


@dataclass(frozen=True)
class Keys:
    """Which keys stand in the columns of the scores, S of them for T queries.

    `past` rows of a cache come first. `appended`: the T new keys follow them (a concatenation); else they
    are written into the cache at the position. Without a cache (past 0, appended) they are all there is.
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

    def visible(self, position: int) -> np.ndarray:
        """bool [T, S]: which keys each query of a causal model sees."""
        query = np.arange(self.T)[:, None]
        key = np.arange(self.S)[None, :]
        if not self.appended:
            return key <= position + query
        return np.where(key < self.past, key < position, key - self.past <= query)


def position_leaf(value: ir.Value, what: str) -> ir.Value | None:
    """The one unknown integer that `value` is computed from, or None if it is constant."""
    unknown = unknown_sources(value)
    if not unknown:
        return None
    if len(unknown) > 1:
        fail(f"{what} depends on {', '.join(v.name or '?' for v in unknown)}: not on a position alone", value)
    leaf = unknown[0]
    if leaf.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        fail(f"{what} depends on {leaf.name}, which is no position: it is {leaf.dtype}", value)
    return leaf


def at_position(value: ir.Value, leaf: ir.Value | None, position: int, what: str) -> np.ndarray:
    """The numbers of `value` when the tokens start at `position`. Raises MatchFailure."""
    known = {}
    if leaf is not None:
        steps = position + np.arange(math.prod(shape_of(leaf))).reshape(shape_of(leaf))
        known[leaf] = steps.astype(leaf.dtype.numpy())  # type: ignore[union-attr]
    try:
        return evaluate(value, known)
    except NotEvaluable as reason:
        fail(f"{what} cannot be computed: {reason}", value)


def prove_causal(mask: ir.Value, keys: Keys) -> ir.Value | None:
    """The position that `mask` ([.., T or 1, S]) follows, None if none; MatchFailure unless causal."""
    leaf = position_leaf(mask, "the mask")
    if leaf is not None and math.prod(shape_of(leaf)) not in (1, keys.T):
        fail(f"the mask depends on {leaf.name}, which is no position of {keys.T} tokens", mask)
    positions: Sequence[int] = keys.positions
    if leaf is None and len(positions) > 1:
        fail("the mask is the same at every position, so it does not hide the unused rows of the cache", mask)
    if leaf is not None and _goes_by_token(mask, leaf, keys):
        positions = sorted({*positions[:: keys.T], positions[-1]})  # where each token's position comes once
    if len(positions) * keys.T * keys.S > BUDGET:
        fail(f"the mask is too large to be proven at each of {len(positions)} positions", mask)
    for position in positions:
        numbers = np.broadcast_to(at_position(mask, leaf, position, "the mask"), (1, 1, keys.T, keys.S))[0, 0]
        visible = keys.visible(position)
        if not (np.all(numbers[visible] == 0) and np.all(numbers[~visible] <= HIDDEN_THRESHOLD)):
            fail(f"the mask is not causal at position {position}", mask)
    return leaf


def prove_start(start: ir.Value, keys: Keys, axis: int) -> ir.Value:
    """The position that `start`, where DYNAMIC_UPDATE_SLICE writes, follows. MatchFailure unless it is that
    position on `axis`, that of the tokens, and 0 on every other."""
    leaf = position_leaf(start, "the row that is written")
    if leaf is None:
        fail("the cache is always written at the same row", start)
    if math.prod(shape_of(leaf)) not in (1, keys.T):
        fail(f"the written row depends on {leaf.name}, which is no position of {keys.T} tokens", start)
    for position in keys.positions:
        numbers = at_position(start, leaf, position, "the row that is written")
        if [int(n) for n in numbers] != [position if i == axis else 0 for i in range(len(numbers))]:
            fail(f"at position {position} the cache is written at {numbers.tolist()}", start)
    return leaf


def _goes_by_token(mask: ir.Value, leaf: ir.Value, keys: Keys) -> bool:
    """Whether the causal mask would be, and `mask` is, the same for a token at whichever place it comes."""

    def counts(vector: ir.Value) -> bool:
        at_start = at_position(vector, leaf, 0, "the mask").reshape(-1)
        steps = at_start[:1] + np.arange(keys.T)
        return all(
            np.array_equal(at_position(vector, leaf, position, "the mask").reshape(-1), steps + position)
            for position in keys.positions
        )

    return keys.T > 1 and not keys.appended and token_axis(mask, leaf, keys.T, counts) == -2
