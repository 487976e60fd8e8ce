"""What exporters scatter over several operators, as Circle's own: norms and rotations, proven as ever."""

from __future__ import annotations

import onnx_ir as ir

from o2o.filters.fuse_rms_norm import FuseRmsNorm
from o2o.filters.fuse_rope import FuseRope
from o2o.filters.fusion import Fusion
from o2o.model import Model
from o2o.rewriting.dead_code_elimination import remove_dead_nodes
from o2o.rewriting.matchers import Miss


def recognise(model: Model, graph: ir.Graph) -> None:
    """Change `graph` in place: RMS_NORM and ROPE stand wherever they can. What is no such thing stays."""
    fusions: tuple[Fusion, ...] = FuseRmsNorm(), FuseRope()
    for fusion in fusions:
        for node in list(fusion.candidates(graph)):
            if node.graph is not graph or not _floats(node):
                continue
            try:
                found = fusion.match(node)
            except Miss:
                continue
            fusion.rewrite(model, graph, found)
        remove_dead_nodes(graph)


def _floats(node: ir.Node) -> bool:
    dtype = node.outputs[0].dtype
    return dtype is not None and dtype.is_floating_point()
