"""Weights in blocks of any kind become int4 products that LiteRT runs, with the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.check.litert_runner import LiteRtRunner
from o2o.check.reference_runner import ReferenceRunner, runner_of
from o2o.errors import ModelError
from o2o.formats.quantization_parameters import set_block_quantization
from o2o.formats.tensors import is_quantized
from o2o.lower.litert import lower_to_litert
from o2o.model import Model, quantization_constants
from o2o.operators.reference import run_nodes
from o2o.quantization.compare import dequantized
from tests.o2o.graphs import Graph, operators, run, weights
from tests.tolerances import assert_close

ROWS, COLUMNS = 6, 64


def model_of(dtype: ir.DataType, block: int, scales: np.ndarray, activation: int = 0) -> Model:
    graph = Graph("main")
    limit = 8 if dtype == ir.DataType.INT4 else 128
    q = np.random.default_rng(block).integers(-limit, limit, (ROWS, COLUMNS)).astype(np.int8)
    q[0, :2] = -limit, limit - 1
    raw = q.view(np.uint8)
    if dtype == ir.DataType.INT4:
        raw = (raw[:, 0::2] & 15) | (raw[:, 1::2] << 4)
    w = graph.raw_constant("w", raw.tobytes(), (ROWS, COLUMNS), dtype)
    set_block_quantization(w, graph.constant("w_scales", scales), block)
    x, bias = graph.input("x", [1, 3, COLUMNS]), graph.constant("bias", weights(ROWS, seed=1))
    options = {"keepNumDims": True, "fusedActivationFunction": activation}
    graph.output(graph.op("FULLY_CONNECTED", [x, w, bias], [1, 3, ROWS], name="y", **options))
    return graph.model()


def evaluated(model: Model, x: np.ndarray) -> np.ndarray:
    """The result in float32, with the numbers that the quantized constants stand for."""
    (graph,) = model.graphs
    known = {v: dequantized(v) for v in graph.initializers.values() if is_quantized(v)}
    return dict(run_nodes(graph, {graph.inputs[0]: x, **known}))[graph.outputs[0]]


def signed_scales(block: int) -> np.ndarray:
    """Powers of two of both signs, which no format rounds."""
    exponents = np.random.default_rng(1).integers(-6, 3, (ROWS, COLUMNS // block))
    return np.where(exponents % 2, -1, 1).astype(np.float32) * np.float32(2.0) ** exponents


@pytest.mark.parametrize(
    ("dtype", "block"), [("INT4", 32), ("INT4", 16), ("INT8", 32), ("INT8", 16), ("INT8", 64)]
)
def test_other_blocks_are_sums_of_int4_products(dtype: str, block: int) -> None:
    model = model_of(ir.DataType[dtype], block, signed_scales(block), activation=1)
    x = weights(1, 3, COLUMNS)
    expected = evaluated(model, x)
    lowered = formats.loads(formats.dumps(lower_to_litert(model)))
    assert_close(evaluated(lowered, x), expected)
    for value in lowered.graphs[0].initializers.values():
        if is_quantized(value):
            assert value.dtype == ir.DataType.INT4
            assert value.meta["fields"]["quantization"].details.blockSize % 32 == 0
            stored = quantization_constants(value)["scales"].const_value
            assert stored is not None
            assert stored.numpy().dtype == np.float16
            assert stored.numpy().min() > 0
    actual = run(lowered, {"x": x})["y"]  # the kernel rounds x to int8
    assert np.abs(actual - expected).max() < 0.02 * np.abs(expected).max()


def test_blocks_that_xnnpack_takes_stay() -> None:
    model = model_of(ir.DataType.INT4, 32, np.abs(signed_scales(32)).astype(np.float16))
    assert operators(lower_to_litert(model)) == {"FULLY_CONNECTED": 1}


def test_they_are_never_run_as_they_are() -> None:
    """LiteRT's own kernel multiplies blocks of 8 bits without an error, by other numbers."""
    model = model_of(ir.DataType.INT8, 32, signed_scales(32))
    assert isinstance(runner_of(model, "the model", or_numpy=False), ReferenceRunner)
    with pytest.raises(ModelError, match="no kernel for the blocks"):
        LiteRtRunner(model_of(ir.DataType.INT8, 32, signed_scales(32)), "the model")
