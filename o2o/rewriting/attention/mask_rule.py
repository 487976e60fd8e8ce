"""The rewrite rule that replaces the mask of `o2o.attention` by what it means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import get_args

import numpy as np
import onnx_ir as ir

from o2o.contract import Layout
from o2o.model import Model, shape_of
from o2o.operators.core_attention import CoreAttention, is_core_attention
from o2o.rewriting.attention.causality import Keys, prove_start
from o2o.rewriting.attention.mask_proof import MaskMeaning, prove_meaning
from o2o.rewriting.attention.proofs import Proofs
from o2o.rewriting.axes import Factors, trace_layout
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import MatchFailure, fail, producer_of
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rewrite_rule import RewriteRule


class MaskRule(RewriteRule):
    """Replace a mask of `o2o.attention` by its position, window and slopes, where these are proven."""

    def __init__(self, proofs: Proofs) -> None:
        """Create the rule.

        Args:
            proofs: The proofs of the model, which layers share.
        """
        self._proofs = proofs
        self._constants: dict[object, ir.Value] = {}

    def candidates(self, graph: ir.Graph) -> Iterable[ir.Node]:
        """See `RewriteRule`."""
        return (node for node in graph if is_core_attention(node) and len(node.inputs) > 4 and node.inputs[4])

    def match(self, node: ir.Node) -> tuple[ir.Node, CoreAttention, MaskMeaning]:
        """See `RewriteRule`."""
        core = CoreAttention.of(node)
        assert core.mask is not None
        if core.slopes is not None:
            fail("it has slopes besides its mask", core.mask)
        keys = Keys(core.T, core.S, appended=False)
        written = written_position(core, self._proofs)
        exact = core.sinks is not None
        meaning = self._proofs.once(prove_meaning, core.mask, keys, core.N, written, exact)
        return node, core, meaning

    def rewrite(
        self, model: Model, graph: ir.Graph, match: tuple[ir.Node, CoreAttention, MaskMeaning]
    ) -> None:
        """See `RewriteRule`."""
        node, core, meaning = match
        op = Builder(graph, before=node)
        position = self._position(graph, node, meaning)
        slopes = self._slopes(op, meaning.slopes) if meaning.slopes else None
        new = replace(core, position=position, mask=None, slopes=slopes, window=meaning.window)
        built = new.build(op.fresh("attention"))
        op.add(built)
        replace_output(model, node.outputs[0], built.outputs[0])

    def _position(self, graph: ir.Graph, node: ir.Node, meaning: MaskMeaning) -> ir.Value:
        """The position of the first query, [1]."""
        leaf = meaning.leaf
        if leaf is not None and shape_of(leaf) == (1,):
            return leaf
        key = meaning.position if leaf is None else leaf
        if key not in self._constants:
            op = Builder(graph, before=node)
            if leaf is None:
                self._constants[key] = op.constant([meaning.position], "position", np.int32)
            else:
                size = int(np.prod(shape_of(leaf)))
                vector = op.reshape(leaf, [size], name="positions")
                self._constants[key] = vector if size == 1 else op.slice(vector, [0], [1], name="position")
        return self._constants[key]

    def _slopes(self, op: Builder, slopes: tuple[float, ...]) -> ir.Value:
        if slopes not in self._constants:
            self._constants[slopes] = op.constant(np.asarray(slopes), "slopes", np.float32)
        return self._constants[slopes]


def written_position(core: CoreAttention, proofs: Proofs) -> ir.Value | None:
    """Return the position at which the new rows of both keys and values are written into caches.

    Args:
        core: The attention.
        proofs: The proofs of the model.

    Returns:
        The input that holds the position of the first new row, or None if none is proven.
    """
    try:
        positions = [_written_at(value, core, proofs) for value in (core.k, core.v)]
    except MatchFailure:
        return None
    return positions[0] if positions[0] is positions[1] else None


def _written_at(value: ir.Value, core: CoreAttention, proofs: Proofs) -> ir.Value | None:
    """The position at which DYNAMIC_UPDATE_SLICE writes T rows into `value` [1, K, S, H]."""
    source, path = trace_layout(value)
    node = producer_of(source, "DYNAMIC_UPDATE_SLICE")
    if node is None:
        return None
    new, start = node.inputs[1:3]
    assert new is not None
    assert start is not None
    factors = Factors({"K": core.K, "S": core.S, "H": core.H})
    shape = list(shape_of(source))
    for layout in get_args(Layout):
        axes = factors.axes(*({"B": (), "N": "K", "T": "S", "H": "H"}[axis] for axis in layout))
        axis = layout.index("T")
        rows = [*shape[:axis], core.T, *shape[axis + 1 :]]
        if factors.shape(axes) == tuple(shape) and shape_of(new) == tuple(rows):
            try:
                if factors.through(path, axes) == factors.axes("", "K", "S", "H"):
                    return proofs.once(prove_start, start, Keys(core.T, core.S, appended=False), axis)
            except MatchFailure:
                continue
    return None
