"""The activation that is fused into an operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.lower.onnx.builder import dims
from o2o.lower.onnx.per_token import TokenValues
from o2o.model import attribute


def with_activation(tokens: TokenValues, node: ir.Node, y: ir.Value) -> ir.Value:
    """Apply the activation that is fused into a node.

    Args:
        tokens: The values of the graph.
        node: An operator with `fusedActivationFunction`.
        y: Its result before the activation.

    Returns:
        The result after it; `y` without an activation.

    Raises:
        ModelError: ONNX has no such activation.
    """
    kind = attribute(node, "fusedActivationFunction", 0)
    bounds = {2: (-1, 1), 3: (0, 6)}
    if kind == 0:
        return y
    if kind in bounds:
        limits = [tokens.op.constant(limit, "bound", np.float32) for limit in bounds[kind]]
        return tokens.op.node("Clip", [y, *limits], dims(y), name=f"{y.name}/activated")
    if kind in (1, 4):
        return tokens.op.node("Relu" if kind == 1 else "Tanh", [y], dims(y), name=f"{y.name}/activated")
    raise tokens.error(node, f"no ONNX lowering for its fused activation {kind}")
