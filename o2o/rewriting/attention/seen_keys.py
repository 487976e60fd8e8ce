"""Proof that each query sees a key: its masks are computed at every position.

Exporters replace attention weights that are no numbers by 0, for queries that see no key. Where there are
none, this changes nothing.
"""

from __future__ import annotations

import numpy as np

from o2o.rewriting.attention.causality import BUDGET, AtPosition, position_leaf
from o2o.rewriting.attention.sdpa import Sdpa
from o2o.rewriting.matchers import MatchFailure


class SeenKeys:
    """Proofs for the attentions of one graph. Layers with the same masks share a proof."""

    def __init__(self) -> None:
        self._proven: dict[tuple[object, ...], bool] = {}

    def each_query_sees_one(self, sdpa: Sdpa) -> bool:
        """Return whether each query sees a key at every position.

        Args:
            sdpa: The attention.

        Returns:
            True if that is proven.
        """
        key = *((term.kind, term.value) for term, _ in sdpa.terms), *sdpa.factors.sizes.values()
        if key not in self._proven:
            try:
                self._proven[key] = _prove(sdpa)
            except MatchFailure:
                self._proven[key] = False
        return self._proven[key]


def _prove(sdpa: Sdpa) -> bool:
    T, S = sdpa.factors.sizes["T"], sdpa.factors.sizes["S"]
    masks = [(term.kind, term.value, position_leaf(term.value, "the mask")) for term, _ in sdpa.terms]
    leaves = {leaf for _, _, leaf in masks if leaf is not None}
    positions = range(S - T + 1) if leaves else range(1)
    if len(leaves) > 1 or len(positions) * T * S > BUDGET:
        return False
    at_position = [(kind, AtPosition(value, leaf, "the mask")) for kind, value, leaf in masks]
    for position in positions:
        is_hidden = np.zeros(S, bool)
        for kind, mask in at_position:
            is_hidden = is_hidden | _hidden(kind, mask(position))
        if is_hidden.all(-1).any():
            return False
    return True


def _hidden(kind: str, numbers: np.ndarray) -> np.ndarray:
    return numbers if kind == "hide" else ~numbers if kind == "show" else ~np.isfinite(numbers)
