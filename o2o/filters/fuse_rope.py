"""`fuse.rope.py`."""

from __future__ import annotations

import onnx_ir as ir

from o2o.filters.fusion import Fusion
from o2o.model import Model, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import made_by, miss
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.rope import Rotation, match_rotation


class FuseRope(Fusion):
    """Fuse rotary position embeddings into ROPE.

        x ----+-------------------- MUL cos --+
              |                               ADD        x, sin, cos -- ROPE
              +-- x[H/2:] - NEG -+            |     =>
              |                CONCAT MUL sin-+
              +-- x[:H/2] -------+

    x is [B, N, T, H]; the tables are [1, 1, T, H]: one row a token, the same for all heads. Found by
    dataflow, whichever way the halves are sliced (STRIDED_SLICE, SLICE, SPLIT) and negated.
    Left alone: neighbours rotated in pairs (GPT-J), part of the head rotated, tables that differ by head.
    """

    name = "fuse.rope.py"
    usage_example = "fuse.rope.py < decode.circle > fused.circle"
    formats = ("circle",)
    anchor = ("ADD",)
    noun = "rotation"

    def candidates(self, graph: ir.Graph) -> list[ir.Node]:
        """Sums in which a concatenation is multiplied: other ADDs are not even near misses."""
        return [node for node in super().candidates(graph) if _multiplies_concatenation(node)]

    def match(self, node: ir.Node) -> tuple[ir.Node, Rotation]:
        rotation = match_rotation(node.outputs[0])
        x, tables = shape_of(rotation.x), (shape_of(rotation.cos), shape_of(rotation.sin))
        if len(x) != 4:
            miss("ROPE takes a tensor of four axes", rotation.x)
        for table, value in zip(tables, (rotation.cos, rotation.sin), strict=True):
            if table not in ((1, 1, x[2], x[3]), (1, 1, 1, x[3])):
                miss(f"a rotation table should be [1, 1, {x[2]}, {x[3]}]", value)
        return node, rotation

    def rewrite(self, model: Model, graph: ir.Graph, match: tuple[ir.Node, Rotation]) -> None:
        node, rotation = match
        op = Builder(graph, before=node)
        old = node.outputs[0]
        new = op.node("ROPE", [rotation.x, rotation.sin, rotation.cos], shape_of(old), mode=0)
        replace_output(model, old, new)


def _multiplies_concatenation(add: ir.Node) -> bool:
    for term in add.inputs:
        product = made_by(term, "MUL")
        if product is not None and any(made_by(factor, "CONCATENATION") for factor in product.inputs):
            return True
    return False


main = FuseRope.main
