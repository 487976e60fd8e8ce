"""Block sizes with which MatMulNBits computes the same bits for one token as for several.

It depends on the processor: with int8 weights, kernels for AVX512-VNNI add up blocks of 128 in another order
for one token. Those for AVX2 do not. So a small product is compared.
"""

from __future__ import annotations

import functools

import numpy as np

from o2o.lower.onnx.builder import CONTRIB
from o2o.lower.onnx.ort_form import BLOCKS, INT8_COMPUTE
from runtime_py.engines.onnx.inference_session import open_inference_session, session_options

TOKENS, ROWS = 5, 24
"""Kernels take tokens and rows of the matrix by twos and fours, and the rest one by one."""
BLOCKS_OF_A_ROW = 5
"""Kernels take blocks by twos and fours, and the rest one by one."""


@functools.cache
def largest_row_exact_block(bits: int) -> int:
    """Find the largest block size that computes each token alike.

    Args:
        bits: Bits of a weight, 4 or 8.

    Returns:
        One of `o2o.lower.onnx.ort_form.BLOCKS`; the smallest if none does.
    """
    return next((size for size in BLOCKS if _is_row_exact(bits, size)), BLOCKS[-1])


def _is_row_exact(bits: int, block: int) -> bool:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    columns = BLOCKS_OF_A_ROW * block
    x = rng.standard_normal((1, TOKENS, columns), np.float32)
    weights = rng.integers(0, 256, (ROWS, BLOCKS_OF_A_ROW, block * bits // 8), np.uint8)
    scales = rng.random((ROWS, BLOCKS_OF_A_ROW), np.float32)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "weights", "scales"],
        ["y"],
        domain=CONTRIB,
        K=columns,
        N=ROWS,
        bits=bits,
        block_size=block,
        accuracy_level=INT8_COMPUTE,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "T", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "T", ROWS])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(scales, "scales")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = open_inference_session(model.SerializeToString(), session_options(threads=1))
    (together,) = session.run(None, {"x": x})
    one_by_one = [session.run(None, {"x": x[:, token : token + 1]})[0] for token in range(TOKENS)]
    return np.array_equal(together, np.concatenate(one_by_one, axis=1))
