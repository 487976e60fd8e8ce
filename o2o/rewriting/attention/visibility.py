"""Masks and positions as operands of ATTENTION: which keys each query sees, where rows are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.operators.attention import Attention
from o2o.rewriting.attention.causality import Keys, at_position, position_leaf, prove_causal, prove_start
from o2o.rewriting.attention.parts import CacheUpdate, Scores
from o2o.rewriting.axes import Axes, Factors
from o2o.rewriting.matchers import MatchFailure, fail


class Visibility:
    """Masks and positions of a model's attention blocks. Layers share them, so each proof runs once."""

    def __init__(self, full_cache: str | None = None) -> None:
        """Begin without proofs.

        Args:
            full_cache: The name of the input that holds the length of caches concatenated without a mask. The
                caller promises that such caches are full.
        """
        self.full_cache = full_cache
        self._proofs: dict[tuple[Any, ...], ir.Value | MatchFailure | None] = {}

    def set_operands(
        self,
        attention: Attention,
        scores: Scores,
        mask_axes: Axes,
        k: CacheUpdate,
        v: CacheUpdate,
        factors: Factors,
        last: ir.Node,
    ) -> tuple[int, ...] | None:
        """Set the mask and position operands.

        Args:
            attention: The operands, changed in place.
            scores: The scores with their mask.
            mask_axes: The axes of the scores where the mask is added.
            k: The update of the key cache.
            v: The update of the value cache.
            factors: The sizes of the block.
            last: The node that computes the block's result, for messages.

        Returns:
            The shape of the mask of zeros that is needed if every query sees every key, else None.

        Raises:
            MatchFailure: No operands of ATTENTION mean the same.
        """
        T, S = factors.sizes["T"], factors.sizes["S"]
        kind = k.node.op_type if k.node is not None else None
        if kind != (v.node.op_type if v.node is not None else None):
            fail("key and value caches are updated by different operators", last.outputs[0])
        mask = _aligned(scores.mask, mask_axes, factors)
        if kind == "CONCATENATION":
            attention.pos = self._concatenated_position(mask, Keys(T, S - T, appended=True), last)
            return None
        keys = Keys(T, 0 if kind is None else S, appended=kind is None)
        if kind == "DYNAMIC_UPDATE_SLICE":
            attention.pos = self._written_position(k, keys)
            if self._written_position(v, keys) is not attention.pos:
                fail("keys and values are written at different positions", last.outputs[0])
        if mask is None:
            return None if kind is None and T == 1 else (1, 1, T, S)
        try:
            leaf = self.prove_once(prove_causal, mask, keys)
            if leaf is not None and leaf is not attention.pos:
                fail("the mask follows another position than the cache", mask)
        except MatchFailure:
            attention.mask = mask  # not causal, or not provably: it stays an operand
        return None

    def prove_once(self, prove: Callable[..., ir.Value | None], *arguments: Any) -> ir.Value | None:
        """Run a proof, or return its cached result.

        Args:
            prove: A proof that returns the position a value follows, and raises MatchFailure if it fails.
            *arguments: Its arguments, which are hashable.

        Returns:
            The position, or None.
        """
        key = (prove, *arguments)
        if key not in self._proofs:
            try:
                self._proofs[key] = prove(*arguments)
            except MatchFailure as failure:
                self._proofs[key] = failure
        result = self._proofs[key]
        if isinstance(result, MatchFailure):
            raise result
        return result

    def _concatenated_position(self, mask: ir.Value | None, keys: Keys, last: ir.Node) -> ir.Value:
        """The position at which a concatenated cache equals a cache that is written in place."""
        if mask is not None and (leaf := self._causal_or_zero(mask, keys)) is not None:
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
        leaf = self.prove_once(prove_causal, mask, keys)
        if leaf is None:
            fail("the mask does not follow a position", mask)
        return leaf

    def _written_position(self, update: CacheUpdate, keys: Keys) -> ir.Value | None:
        """The position at which DYNAMIC_UPDATE_SLICE writes. Its start must be (.., position, ..)."""
        assert update.node is not None
        start = update.node.inputs[2]
        assert start is not None
        return self.prove_once(prove_start, start, keys, update.axis)


def _aligned(mask: ir.Value | None, axes: Axes, factors: Factors) -> ir.Value | None:
    """Return the mask if its last two axes are queries and keys and all heads share it. Else MatchFailure.

    `axes` are the axes of the scores at the addition.
    """
    if mask is None:
        return None
    T, S = factors.sizes["T"], factors.sizes["S"]
    tokens, keys = factors.axes("T", "S")
    shape = (1,) * (len(axes) - len(shape_of(mask))) + shape_of(mask)
    if axes[-1] != keys or shape[-1] not in (1, S):
        fail(f"the mask is not [.., {T}, {S}], or is added to scores that are not", mask)
    if any(dim != 1 for dim in shape[:-2]) or (shape[-2] != 1 and axes[-2] != tokens):
        fail("the mask differs from head to head", mask)
    return mask
