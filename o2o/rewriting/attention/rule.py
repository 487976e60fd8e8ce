"""The rewrite rule that fuses attention blocks into ATTENTION."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.model import Model, inner_graphs, shape_of
from o2o.rewriting.attention.match import AttentionMatch, match_attention
from o2o.rewriting.attention.visibility import Visibility
from o2o.rewriting.builder import Builder, add_constant
from o2o.rewriting.rewire import replace_output, set_io_values, sync_signatures
from o2o.rewriting.rewrite_rule import RewriteRule


class AttentionRule(RewriteRule):
    """Fuse the attention block around each SOFTMAX into ATTENTION."""

    anchors = ("SOFTMAX",)

    def __init__(self, model: Model, full_cache: str | None = None) -> None:
        """Create the rule.

        Args:
            model: The model that the rule is applied to.
            full_cache: The name of the input that holds the length of concatenated caches without a mask.
        """
        self._visibility = Visibility(full_cache)
        self._inner = {inner for graph in model.graphs for node in graph for inner in inner_graphs(node)}

    def match(self, node: ir.Node) -> AttentionMatch:
        """See `RewriteRule`."""
        return match_attention(node, self._visibility, self._inner)

    def rewrite(self, model: Model, graph: ir.Graph, match: AttentionMatch) -> None:
        """See `RewriteRule`."""
        attention, old = match.attention, match.last.outputs[0]
        if match.zero_mask is not None:
            zeros = np.zeros(match.zero_mask, attention.x.dtype.numpy())  # type: ignore[union-attr]
            attention.mask = add_constant(graph, zeros, "no_mask")
        op = Builder(graph, before=match.last)
        T, H = attention.T, attention.H
        for table in ("cos", "sin"):
            value = getattr(attention, table)
            if value is not None:
                setattr(attention, table, op.reshape(value, [1, T, H], name=table))
        attention.x = op.reshape(attention.x, [1, T, shape_of(attention.x)[-1]], name="x")
        result = op.node("ATTENTION", attention.operands(), [1, T, shape_of(old)[-1]])
        replace_output(model, old, op.reshape(result, shape_of(old)))
        if match.cache_outputs:
            set_io_values(
                graph, "output", [value for value in graph.outputs if value not in match.cache_outputs]
            )
            sync_signatures(model, graph)
