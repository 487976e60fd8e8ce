"""Masks and positions as operands of ATTENTION: which keys each query sees, where rows are written."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.operators.attention import Attention
from o2o.operators.core_attention import CoreAttention
from o2o.operators.masks import LOWEST
from o2o.operators.reference import unknown_sources
from o2o.rewriting.attention.causality import (
    Keys,
    at_position,
    position_leaf,
    prove_causal,
    prove_position,
    prove_start,
)
from o2o.rewriting.attention.parts import CacheUpdate
from o2o.rewriting.attention.proofs import Proofs
from o2o.rewriting.matchers import fail


class Visibility:
    """Masks and positions of a model's attention blocks."""

    def __init__(self, proofs: Proofs, full_cache: str | None = None) -> None:
        """Begin.

        Args:
            proofs: The proofs of the model, which layers share.
            full_cache: The name of the input that holds the length of caches concatenated without a mask. The
                caller promises that such caches are full.
        """
        self.full_cache = full_cache
        self._proofs = proofs

    def set_operands(
        self, attention: Attention, core: CoreAttention, k: CacheUpdate, v: CacheUpdate, last: ir.Node
    ) -> np.ndarray | None:
        """Set the mask and position operands.

        Args:
            attention: The operands, changed in place.
            core: The core of the block.
            k: The update of the key cache.
            v: The update of the value cache.
            last: The node that computes the block's result, for messages.

        Returns:
            A constant mask that is needed besides, float32 [1, 1, T, S], or None. ATTENTION without a mask is
            causal at the position at which rows are written.

        Raises:
            MatchFailure: No operands of ATTENTION mean the same.
        """
        T, S = core.T, core.S
        kind = k.node.op_type if k.node is not None else None
        if kind != (v.node.op_type if v.node is not None else None):
            fail("key and value caches are updated by different operators", last.outputs[0])
        _check_mask(core)
        if kind == "CONCATENATION":
            attention.pos = self._concatenated_position(core, Keys(T, S - T, appended=True), last)
            return None
        keys = Keys(T, 0 if kind is None else S, appended=kind is None)
        if kind == "DYNAMIC_UPDATE_SLICE":
            attention.pos = self._written_position(k, keys)
            if self._written_position(v, keys) is not attention.pos:
                fail("keys and values are written at different positions", last.outputs[0])
        if core.mask is not None:
            attention.mask = core.mask
            return None
        if not unknown_sources(core.position):
            position = int(at_position(core.position, None, 0, "the position").reshape(-1)[0])
            if kind is None and position == 0:
                return None
            visible = Keys(T, S, appended=False).visible(position)
            return np.where(visible, np.float32(0), np.float32(LOWEST))[None, None]
        if kind is None:
            fail("the position of the queries changes, but there is no cache", core.position)
        if self._proofs.once(prove_position, core.position, keys) is not attention.pos:
            fail("the queries are at another position than the rows that are written", core.position)
        return None

    def _concatenated_position(self, core: CoreAttention, keys: Keys, last: ir.Node) -> ir.Value:
        """The position at which a concatenated cache equals a cache that is written in place."""
        if core.mask is not None and (leaf := self._causal_or_zero(core.mask, keys)) is not None:
            return leaf
        if self.full_cache is not None and keys.T == 1:
            graph = last.graph
            assert graph is not None
            position = next((value for value in graph.inputs if value.name == self.full_cache), None)
            if position is None:
                fail(f"--assume-full-cache: there is no input {self.full_cache}", last.outputs[0])
            position_leaf(position, "--assume-full-cache")
            if math.prod(shape_of(position)) != 1:
                fail("--assume-full-cache names an input that is not the position of one token", position)
            return position
        fail(
            "the cache is concatenated without a mask, which equals a cache written in place only when it is "
            "full (--assume-full-cache POSITION asserts this)",
            last.outputs[0],
        )

    def _causal_or_zero(self, mask: ir.Value, keys: Keys) -> ir.Value | None:
        """The position that a causal mask follows; None for a mask that hides nothing."""
        if position_leaf(mask, "the mask") is None and not np.any(at_position(mask, None, 0, "the mask")):
            return None
        leaf = self._proofs.once(prove_causal, mask, keys)
        if leaf is None:
            fail("the mask does not follow a position", mask)
        return leaf

    def _written_position(self, update: CacheUpdate, keys: Keys) -> ir.Value | None:
        """The position at which DYNAMIC_UPDATE_SLICE writes. Its start must be (.., position, ..)."""
        assert update.node is not None
        start = update.node.inputs[2]
        assert start is not None
        return self._proofs.once(prove_start, start, keys, update.axis)


def _check_mask(core: CoreAttention) -> None:
    """Check that all heads share the mask. Raises MatchFailure."""
    if core.mask is None:
        return
    shape = (1,) * (4 - len(shape_of(core.mask))) + shape_of(core.mask)
    if any(dim != 1 for dim in shape[:-2]):
        fail("the mask differs from head to head", core.mask)
