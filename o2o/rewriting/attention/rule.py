"""The rewrite rule that fuses the core of attention and what surrounds it into ATTENTION."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from o2o.model import Model, inner_graphs, shape_of
from o2o.operators.core_attention import is_core_attention
from o2o.rewriting.attention.match import AttentionMatch, match_attention
from o2o.rewriting.attention.proofs import Proofs
from o2o.rewriting.attention.visibility import Visibility
from o2o.rewriting.builder import Builder, add_constant
from o2o.rewriting.rewire import replace_output, set_io_values, sync_signatures
from o2o.rewriting.rewrite_rule import RewriteRule


class AttentionRule(RewriteRule):
    """Fuse the projections, rotations and caches around each `o2o.attention` into ATTENTION."""

    def __init__(self, model: Model, proofs: Proofs, full_cache: str | None = None) -> None:
        """Create the rule.

        Args:
            model: The model that the rule is applied to.
            proofs: The proofs of the model, which layers share.
            full_cache: The name of the input that holds the length of concatenated caches without a mask.
        """
        self._visibility = Visibility(proofs, full_cache)
        self._inner = {inner for graph in model.graphs for node in graph for inner in inner_graphs(node)}

    def candidates(self, graph: ir.Graph) -> Iterable[ir.Node]:
        """See `RewriteRule`."""
        return (node for node in graph if is_core_attention(node))

    def match(self, node: ir.Node) -> AttentionMatch:
        """See `RewriteRule`."""
        return match_attention(node, self._visibility, self._inner)

    def rewrite(self, model: Model, graph: ir.Graph, match: AttentionMatch) -> None:
        """See `RewriteRule`."""
        attention, old = match.attention, match.last.outputs[0]
        if match.mask is not None:
            attention.mask = add_constant(graph, match.mask, "mask" if match.mask.any() else "no_mask")
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
