"""Lookups in tables in blocks, on LiteRT."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.formats.quantization_parameters import set_block_quantization
from o2o.formats.tensors import storage_key
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from o2o.quantization.compare import dequantized
from tests.o2o.graphs import Graph, run
from tests.o2o.lower.litert.test_block_weights import COLUMNS, ROWS, signed_scales
from tests.tolerances import assert_close

IDS = np.asarray([4, 0, 5], np.int32)


def model_of(dtype: ir.DataType, block: int, scales: np.ndarray, tied: bool = False) -> Model:
    graph = Graph("main")
    limit = 8 if dtype == ir.DataType.INT4 else 128
    q = np.random.default_rng(block).integers(-limit, limit, (ROWS, COLUMNS)).astype(np.int8)
    raw = q.view(np.uint8)
    if dtype == ir.DataType.INT4:
        raw = (raw[:, 0::2] & 15) | (raw[:, 1::2] << 4)
    table = graph.raw_constant("w", raw.tobytes(), (ROWS, COLUMNS), dtype)
    set_block_quantization(table, graph.constant("w_scales", scales), block)
    ids = graph.input("ids", [3], ir.DataType.INT32)
    graph.output(graph.op("EMBEDDING_LOOKUP", [ids, table], [3, COLUMNS], ir.DataType.FLOAT, name="y"))
    if tied:
        graph.output(graph.fc(graph.input("x", [1, COLUMNS]), table, "logits"))
    return graph.model()


@pytest.mark.parametrize("dtype", ["INT4", "INT8"])
@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("sign", ["positive", "both"])
def test_rows(dtype: str, block: int, sign: str) -> None:
    scales = signed_scales(block)
    model = model_of(
        ir.DataType[dtype], block, np.abs(scales).astype(np.float16) if sign == "positive" else scales
    )
    expected = dequantized(model.graphs[0].initializers["w"])[IDS]
    actual = run(formats.loads(formats.dumps(lower_to_litert(model))), {"ids": IDS})["y"]
    assert_close(actual, expected)


@pytest.mark.parametrize("sign", ["positive", "both"])
def test_a_tied_head_shares_the_bytes(sign: str) -> None:
    scales = signed_scales(32) if sign == "both" else np.abs(signed_scales(32)).astype(np.float16)
    graph = lower_to_litert(model_of(ir.DataType.INT4, 32, scales, tied=True)).graphs[0]
    tensors = [value.const_value for value in graph.initializers.values() if value.const_value is not None]
    tables = [tensor for tensor in tensors if tensor.nbytes == ROWS * COLUMNS // 2]
    assert len(tables) == 2
    assert len({storage_key(tensor) for tensor in tables}) == 1
