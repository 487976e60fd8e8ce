"""Norms of a decode graph: RMS_NORM, and RMSNorm and LayerNorm that are decomposed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.lower.onnx.operators import constant_vector
from o2o.lower.onnx.per_token import TokenValues
from o2o.model import DOMAIN, attribute, shape_of
from o2o.rewriting.layer_norm import match_layer_norm
from o2o.rewriting.matchers import MatchFailure
from o2o.rewriting.normalization import NORM_ANCHORS
from o2o.rewriting.rms_norm import match_rms_norm


@dataclass(frozen=True)
class Norm:
    """A norm over the last axis, as ONNX has it.

    Attributes:
        weight: [D].
        bias: [D], or None.
        epsilon: Added to the variance, or to the mean of squares.
        centered: Whether the mean is subtracted first: LayerNorm, not RMSNorm.
    """

    weight: ir.Value
    bias: ir.Value | None
    epsilon: float
    centered: bool


@dataclass(frozen=True)
class NormNodes:
    """A norm of `x` in the Circle graph. `last` computes its result."""

    last: ir.Node
    x: ir.Value
    norm: Norm


class Norms:
    """The norms of a graph, by their last node and by their operand."""

    def __init__(self, tokens: TokenValues) -> None:
        """Match all norms.

        Args:
            tokens: The values of the graph.

        Raises:
            ModelError: The weight of an RMS_NORM is not a constant.
        """
        self._tokens = tokens
        norms = [norm for node in tokens.graph if (norm := self._match(node)) is not None]
        self.by_last = {norm.last: norm for norm in norms}
        self.by_operand = {norm.x: norm for norm in reversed(norms)}  # the first one of each operand

    def _match(self, node: ir.Node) -> NormNodes | None:
        if node.domain != DOMAIN:
            return None
        if node.op_type == "RMS_NORM":
            x, weight = node.inputs
            epsilon = float(attribute(node, "epsilon", 0.0))
            assert x is not None
            return NormNodes(node, x, Norm(constant_vector(self._tokens, weight, node), None, epsilon, False))
        if node.op_type not in NORM_ANCHORS:
            return None
        # LayerNorm first: behind the subtraction of the mean, it is an RMSNorm.
        return self._layer_norm(node) or self._rms_norm(node)

    def _layer_norm(self, node: ir.Node) -> NormNodes | None:
        try:
            match = match_layer_norm(node, lambda value: self._tokens.fold(value) is not None)
        except MatchFailure:
            return None
        weight = self._vector(match.weight)
        if weight is None:
            weight = self._tokens.op.constant(np.ones(shape_of(match.x)[-1]), "ones", np.float32)
        norm = Norm(weight, self._vector(match.bias), match.epsilon, centered=True)
        return NormNodes(match.last, match.x, norm)

    def _rms_norm(self, node: ir.Node) -> NormNodes | None:
        try:
            match = match_rms_norm(node)
        except MatchFailure:
            return None
        weight = self._vector(match.weight)
        if weight is None:
            return None
        return NormNodes(match.last, match.x, Norm(weight, None, match.epsilon, centered=False))

    def _vector(self, value: ir.Value | None) -> ir.Value | None:
        array = None if value is None else self._tokens.fold(value)
        if value is None or array is None:
            return None
        return self._tokens.op.constant(array.reshape(-1), value.name or "weight", array.dtype)
