"""Shapes behind operators of ONNX Runtime, as ONNX Runtime computes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from o2o import formats
from o2o.model import dims_of
from o2o.operators.onnx_shape_inference import infer_shapes
from tests.o2o.raising.onnx_runtime import model_of

F = np.float32
X, BYTES = np.zeros((1, 3, 64), F), np.zeros((16, 2, 16), np.uint8)
CACHE = np.zeros((1, 2, 5, 16), F)
CASES: dict[str, tuple[list[Any], int | list[bool], dict[str, Any]]] = {
    "MatMulNBits": ([X, BYTES, np.zeros(32, F)], 1, {"N": 16, "K": 64, "bits": 4, "block_size": 32}),
    "GatherBlockQuantized": (
        [np.zeros((16, 32), np.uint8), np.zeros((1, 3), np.int64), np.zeros((16, 2), F)],
        1,
        {"block_size": 32},
    ),
    "SkipLayerNormalization": ([X, X, X[0, 0]], [True, False, False, True], {}),
    "FusedMatMul": ([X, np.zeros((7, 64), F)], 1, {"transB": 1}),
    "FusedMatMul in batches": (
        [np.zeros((1, 4, 5, 3), F), np.zeros((2, 4, 7, 5), F)],
        1,
        {"transA": 1, "transB": 1, "alpha": 0.5},
    ),
    "DynamicQuantizeMatMul": ([X, np.zeros((64, 7), np.int8), np.ones(1, F)], 1, {}),
    "QuickGelu": ([X], 1, {}),
    "GroupQueryAttention": (
        [
            X[:, :1].repeat(2, 2),
            None,
            None,
            CACHE,
            CACHE,
            np.full(1, 5, np.int32),
            np.asarray(6, np.int32),
        ],
        3,
        {"num_heads": 4, "kv_num_heads": 2},
    ),
    "MultiHeadAttention": ([X, X, np.zeros((1, 3, 32), F)], 1, {"num_heads": 4}),
    "Attention": ([X, np.zeros((64, 192), F), np.zeros(192, F)], 1, {"num_heads": 4}),
}


@pytest.mark.parametrize("op_type", CASES)
def test_shapes_are_inferred_behind_it(op_type: str) -> None:
    inputs, outputs, attributes = CASES[op_type]
    constant = [index for index, x in enumerate(inputs) if index and x is not None]
    proto = model_of(op_type.split()[0], inputs, outputs, constant, **attributes)
    names = [name for name in proto.graph.node[0].output if name]
    results = [f"{name}_copy" for name in names]
    pairs = list(zip(names, results, strict=True))
    copies = [onnx.helper.make_node("Identity", [name], [copy]) for name, copy in pairs]
    proto.graph.node.extend(copies)
    for value, name in zip(proto.graph.output, results, strict=True):
        value.name = name
        value.type.tensor_type.ClearField("shape")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x0": inputs[0]})
    model = formats.loads(proto.SerializeToString())
    infer_shapes(model)
    for value, array in zip(model.graphs[0].outputs, expected, strict=True):
        dims = dims_of(value)
        assert dims is not None
        assert len(dims) == array.ndim
        assert all(
            dim == size or isinstance(dim, str) for dim, size in zip(dims, array.shape, strict=True)
        ), dims
        assert value.dtype is not None
        assert value.dtype.numpy() == array.dtype
