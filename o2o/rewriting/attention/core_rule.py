"""The rewrite rule that raises scattered attention to its core, `o2o.attention`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_quantized
from o2o.model import Model, shape_of
from o2o.operators.core_attention import CoreAttention
from o2o.rewriting.attention.layouts import LabeledValue, in_layout
from o2o.rewriting.attention.mask_operand import MaskOperands
from o2o.rewriting.attention.scores import is_finite
from o2o.rewriting.attention.sdpa import Sdpa, by_head, match_sdpa
from o2o.rewriting.attention.seen_keys import SeenKeys
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import fail
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rewrite_rule import RewriteRule


class CoreRule(RewriteRule):
    """Raise softmax(scale q k' + mask) v, around each SOFTMAX, to `o2o.attention`.

    Whatever precedes q, k and v stays as it is: projections with or without biases, norms, rotations, caches.
    All masks and biases become one mask operand; `MaskRule` finds out what it means. A rule is for one graph.
    """

    anchors = ("SOFTMAX",)

    def __init__(self) -> None:
        self._masks = MaskOperands()
        self._seen = SeenKeys()
        self._positions: dict[int, ir.Value] = {}

    def match(self, node: ir.Node) -> tuple[ir.Node, Sdpa]:
        """See `RewriteRule`."""
        sdpa = match_sdpa(node, by_head)
        biases = [term.value for term, _ in sdpa.terms if term.kind == "add"]
        is_finite_mask = all(term.kind == "add" and is_finite(term.value) for term, _ in sdpa.terms)
        if sdpa.zeroes_nan and not is_finite_mask and not self._seen.each_query_sees_one(sdpa):
            fail("a query that sees no key gets zeros, and o2o.attention gives it a mean", sdpa.result.value)
        operands = [sdpa.q.value, sdpa.k.value, sdpa.v.value, *biases]
        if sdpa.sinks is not None:
            operands.append(sdpa.sinks)
        for value in operands:
            if value.dtype != ir.DataType.FLOAT or is_quantized(value):
                fail("attention is raised in float32 alone", value)
        return node, sdpa

    def rewrite(self, model: Model, graph: ir.Graph, match: tuple[ir.Node, Sdpa]) -> None:
        """See `RewriteRule`."""
        softmax, sdpa = match
        factors, layouts, old = sdpa.factors, by_head(sdpa.factors), sdpa.result.value
        mask = self._masks.build(Builder(graph, before=softmax), sdpa)
        op = Builder(graph, before=sdpa.last, prefix=f"{old.name}/")
        q, k, v = (
            in_layout(op, factors, labeled, axes, name)
            for labeled, axes, name in (
                (sdpa.q, layouts.q, "q"),
                (sdpa.k, layouts.kv, "k"),
                (sdpa.v, layouts.kv, "v"),
            )
        )
        sinks = op.reshape(sdpa.sinks, [shape_of(q)[1]], name="sinks") if sdpa.sinks is not None else None
        # With a mask, no position hides a key. Without one, all are seen from the last one.
        position = self._position(graph, 0 if mask is not None else factors.sizes["S"] - 1)
        core = CoreAttention(q, k, v, position, sdpa.scale, mask, sinks=sinks, softcap=sdpa.cap or 0.0)
        node = core.build(op.fresh("attention"))
        op.add(node)
        result = in_layout(
            op, factors, LabeledValue(node.outputs[0], layouts.result), sdpa.result.axes, "result"
        )
        replace_output(model, old, op.reshape(result, shape_of(old), name="result"))

    def _position(self, graph: ir.Graph, position: int) -> ir.Value:
        if position not in self._positions:
            self._positions[position] = Builder(graph).constant([position], "position", np.int32)
        return self._positions[position]
