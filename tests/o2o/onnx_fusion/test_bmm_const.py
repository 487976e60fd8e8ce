"""A constant matrix on the left, or behind layout operators, becomes the right operand of MatMul."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from o2o.onnx_fusion.bmm_const import OnnxBmmConstRule
from tests.o2o.onnx_fusion.comparison import assert_same, fused, model_of, operators

pytest.importorskip("onnxruntime")

X = np.random.default_rng(0).standard_normal((2, 6, 5)).astype(np.float32)
LEFT = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
PRODUCTS = {  # and the operators that remain
    "y = MatMul (a, x)": {"Transpose": 2, "MatMul": 1},
    "y0 = MatMul (a, x) y = Transpose <perm = [0, 2, 1]> (y0)": {"Transpose": 1, "MatMul": 1},
    "b = Transpose <perm = [1, 0]> (a) c = Unsqueeze (b, zero) t = Transpose <perm = [0, 2, 1]> (x) "
    "y = MatMul (t, c)": {"Transpose": 1, "MatMul": 1},
}


def product(nodes: str, shape: str = "B, 40, T") -> onnx.ModelProto:
    proto = model_of(f"g (float[B, 6, T] x) => (float[{shape}] y) <int64[1] zero = {{0}}> {{ {nodes} }}")
    proto.graph.initializer.append(numpy_helper.from_array(LEFT, "a"))
    return proto


@pytest.mark.parametrize("nodes", PRODUCTS)
def test_the_matrix_stands_on_the_right(nodes: str) -> None:
    before = product(nodes, "B, 40, T" if nodes.endswith("(a, x)") else "B, T, 40")
    after, result = fused(before, OnnxBmmConstRule("standard"))
    assert (result.rewritten, operators(after)) == (1, PRODUCTS[nodes])
    (matmul,) = (node for node in after.graph.node if node.op_type == "MatMul")
    shapes = {tensor.name: list(tensor.dims) for tensor in after.graph.initializer}
    assert shapes[matmul.input[1]] == [6, 40]
    assert after.opset_import[0].version == 17
    assert_same(before, after, {"x": X})


@pytest.mark.parametrize(
    "nodes",
    [
        "t = Transpose <perm = [0, 2, 1]> (x) r = Transpose <perm = [1, 0]> (a) y = MatMul (t, r)",
        "t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (t, x)",
        "n = Neg (x) t = Transpose <perm = [0, 2, 1]> (n) y = MatMul (t, x)",
    ],
)
def test_other_products_stay(nodes: str) -> None:
    after, result = fused(product(nodes, "B, T, N"), OnnxBmmConstRule("standard"))
    assert result.rewritten == 0
    assert operators(after)["Transpose"] >= 1
