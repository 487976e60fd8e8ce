"""Settling which keys each query sees, and at which position new keys and values are cached."""

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
    """Masks and positions of a model's attention blocks. Layers share them: each is proven once.

    full_cache: the name of an input that is promised to be the length of caches concatenated without a mask.
    """

    def __init__(self, full_cache: str | None = None) -> None:
        self.full_cache = full_cache
        self._proven: dict[tuple[Any, ...], ir.Value | MatchFailure | None] = {}

    def settle(
        self,
        attention: Attention,
        scores: Scores,
        mask_axes: Axes,
        k: CacheUpdate,
        v: CacheUpdate,
        factors: Factors,
        last: ir.Node,
    ) -> tuple[int, ...] | None:
        """Give `attention` its mask and position operands. Raises MatchFailure.

        Returns the shape of the mask of zeros that it needs beside, when every query sees every key.
        """
        T, S = factors.sizes["T"], factors.sizes["S"]
        kind = k.node.op_type if k.node is not None else None
        if kind != (v.node.op_type if v.node is not None else None):
            fail("keys and values join their caches differently", last.outputs[0])
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
            leaf = self._prove(mask, keys)
            if leaf is not None and leaf is not attention.pos:
                fail("the mask follows another position than the cache", mask)
        except MatchFailure:
            attention.mask = mask  # not the causal one, or not provably: it stays as it is
        return None

    def _concatenated_position(self, mask: ir.Value | None, keys: Keys, last: ir.Node) -> ir.Value:
        """The position at which a concatenated cache means the same as one written in place."""
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
                fail("--assume-full-cache names an input that is no position of one token", position)
            return position
        fail(
            "the cache is concatenated without a mask: all of it counts, which is the same as one written "
            "in place only when it is full (--assume-full-cache POSITION takes that as given)",
            last.outputs[0],
        )

    def _causal_or_zero(self, mask: ir.Value, keys: Keys) -> ir.Value | None:
        """The position that a causal mask follows; None for a mask that hides nothing."""
        if position_leaf(mask, "the mask") is None and not np.any(at_position(mask, None, 0, "the mask")):
            return None
        leaf = self._prove(mask, keys)
        if leaf is None:
            fail("the mask does not follow a position", mask)
        return leaf

    def _prove(self, mask: ir.Value, keys: Keys) -> ir.Value | None:
        return self._once(prove_causal, mask, keys)

    def _written_position(self, joined: CacheUpdate, keys: Keys) -> ir.Value | None:
        """The position that DYNAMIC_UPDATE_SLICE writes at. Its start is (.., pos, ..)."""
        assert joined.node is not None
        start = joined.node.inputs[2]
        assert start is not None
        return self._once(prove_start, start, keys, joined.axis)

    def _once(self, prove: Callable[..., ir.Value | None], *of: Any) -> ir.Value | None:
        """What `prove` says of these, remembered."""
        key = (prove, *of)
        if key not in self._proven:
            try:
                self._proven[key] = prove(*of)
            except MatchFailure as reason:
                self._proven[key] = reason
        found = self._proven[key]
        if isinstance(found, MatchFailure):
            raise found
        return found


def _aligned(mask: ir.Value | None, axes: Axes, factors: Factors) -> ir.Value | None:
    """The mask, if its last two axes are queries and keys and all heads share it. Raises MatchFailure.

    axes: of the scores where it is added.
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
