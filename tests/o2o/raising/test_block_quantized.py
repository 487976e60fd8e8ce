"""MatMulNBits and GatherBlockQuantized: the stored integers stay, and compute what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from o2o.formats.tensors import is_quantized
from o2o.operators.reference import run_nodes
from o2o.quantization.compare import dequantized
from o2o.raising.operation import NotRaised
from tests.o2o.raising.onnx_runtime import model_of, operators, raised

ROWS = 6


def packed(q: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers of a few bits as bytes, the first in the lowest bits."""
    flat = np.unpackbits(q.astype(np.uint8)[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(flat.reshape(*q.shape[:-1], -1), axis=-1, bitorder="little")


def run(graph: ir.Graph, **feeds: np.ndarray) -> np.ndarray:
    """The output of a graph whose quantized constants stand for their numbers."""
    known = {value: feeds[value.name or ""].astype(value.dtype.numpy()) for value in graph.inputs}  # type: ignore
    known |= {value: dequantized(value) for value in graph.initializers.values() if is_quantized(value)}
    return dict(run_nodes(graph, known))[graph.outputs[0]]


def matrix(bits: int, block: int, columns: int, zeros: str) -> tuple[list, np.ndarray]:
    """The operands B, scales and zero_points, and the matrix that they stand for."""
    random = np.random.default_rng([bits, block, columns])
    blocks = -(-columns // block)
    q = random.integers(0, 1 << bits, (ROWS, blocks, block))
    scales = random.random((ROWS, blocks)).astype(np.float32) + 0.1
    zero = np.full((ROWS, blocks), 1 << (bits - 1))
    stored = None
    if zeros:
        zero = random.integers(0, 1 << bits, (ROWS, blocks))
        stored = packed(zero, bits) if zeros == "packed" else zero.astype(np.float32)
    w = ((q - zero[..., None]) * scales[..., None]).reshape(ROWS, -1)[:, :columns].astype(np.float32)
    return [packed(q, bits), scales, stored], w


@pytest.mark.parametrize(
    ("bits", "block", "columns", "zeros"),
    [
        (4, 32, 64, ""),
        (4, 16, 40, "packed"),  # the last block is not whole
        (4, 32, 64, "floats"),
        (8, 32, 64, ""),
        (8, 64, 64, "packed"),
        (2, 32, 64, ""),
    ],
)
def test_matmul_nbits(bits: int, block: int, columns: int, zeros: str) -> None:
    (b, scales, zero), w = matrix(bits, block, columns, zeros)
    x = np.random.default_rng(1).standard_normal((2, columns)).astype(np.float32)
    bias = np.arange(ROWS, dtype=np.float32)
    inputs = [x, b, scales, zero, None, bias]
    constants = [index for index in (1, 2, 3, 5) if inputs[index] is not None]
    model = model_of("MatMulNBits", inputs, 1, constants, bits=bits, block_size=block, N=ROWS, K=columns)
    graph = raised(model).graph
    weights = [value for value in graph.initializers.values() if is_quantized(value)]
    assert [value.dtype for value in weights] == [ir.DataType.INT8 if bits == 8 else ir.DataType.INT4]
    np.testing.assert_allclose(run(graph, x0=x), x @ w.T + bias, rtol=1e-4, atol=1e-4)


def test_scales_that_float16_holds_are_stored_in_float16() -> None:
    (b, scales, _), _ = matrix(4, 32, 64, "")
    for numbers, dtype in ((scales, np.float32), (scales.astype(np.float16).astype(np.float32), np.float16)):
        model = model_of(
            "MatMulNBits",
            [np.zeros((1, 64), np.float32), b, numbers],
            1,
            [1, 2],
            bits=4,
            block_size=32,
            N=ROWS,
            K=64,
        )
        (stored,) = (v for name, v in raised(model).graph.initializers.items() if name.endswith("_scales"))
        assert stored.dtype is not None
        assert stored.dtype.numpy() == dtype


@pytest.mark.parametrize(("bits", "zeros"), [(4, ""), (4, "packed"), (8, ""), (8, "packed")])
def test_gather_block_quantized(bits: int, zeros: str) -> None:
    (b, scales, zero), w = matrix(bits, 16, 32, zeros)
    table = b.reshape(ROWS, -1)
    ids = np.asarray([[5, 0, 2]], np.int64)
    inputs = [table, ids, scales, zero]
    constants = [index for index in (0, 2, 3) if inputs[index] is not None]
    model = model_of(
        "GatherBlockQuantized", inputs, 1, constants, bits=bits, block_size=16, gather_axis=0, quantize_axis=1
    )
    graph = raised(model).graph
    np.testing.assert_allclose(run(graph, x1=ids), w[ids], rtol=1e-5)
    assert "EMBEDDING_LOOKUP" in operators(graph)
    largest = max(value.const_value.nbytes for value in graph.initializers.values())  # type: ignore[union-attr]
    assert largest == max(table.nbytes, scales.nbytes)  # the table stays packed


@pytest.mark.parametrize(
    ("change", "reason"), [({"g_idx": [1, 0]}, "g_idx"), ({"constant": [2]}, "not constant")]
)
def test_refused(change: dict, reason: str) -> None:
    (b, scales, _), _ = matrix(4, 32, 64, "")
    order = np.repeat(np.asarray(change.get("g_idx", [0, 1]), np.int32), 32)
    inputs = [np.zeros((1, 64), np.float32), b, scales, None, order]
    constants = change.get("constant", [1, 2, 4])
    model = model_of("MatMulNBits", inputs, 1, constants, bits=4, block_size=32, N=ROWS, K=64)
    with pytest.raises(NotRaised, match=reason):
        raised(model)


def test_product_and_lookup_share_the_table() -> None:
    """An embedding that is tied to the head: both constants have the same bytes."""
    (b, scales, _), _ = matrix(4, 32, 64, "")
    product = raised(
        model_of(
            "MatMulNBits",
            [np.zeros((1, 64), np.float32), b, scales],
            1,
            [1, 2],
            bits=4,
            block_size=32,
            N=ROWS,
            K=64,
        )
    ).graph
    lookup = raised(
        model_of(
            "GatherBlockQuantized",
            [b.reshape(ROWS, -1), np.asarray([1], np.int64), scales],
            1,
            [0, 2],
            bits=4,
            block_size=32,
        )
    ).graph
    assert "FULLY_CONNECTED" in operators(product)
    data = [
        {
            value.const_value.tobytes()
            for value in graph.initializers.values()
            if value.const_value.nbytes == b.nbytes
        }  # type: ignore[union-attr]
        for graph in (product, lookup)
    ]
    assert data[0] & data[1]
