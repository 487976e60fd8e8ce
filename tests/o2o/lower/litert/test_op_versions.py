"""Operators on weights that are quantised get the versions that LiteRT's own converter gives them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.lower.litert.op_versions import minimum_version
from tests.o2o.graphs import FLOAT, INT32, Graph, blockwise, interpreter, per_channel, weights

ROWS, COLUMNS = 8, 32


def weight(graph: Graph, kind: str) -> ir.Value:
    if kind == "int4":
        raw = bytes(ROWS * COLUMNS // 2)
        value = graph.raw_constant("w", raw, [ROWS, COLUMNS], ir.DataType.INT4)
    else:
        dtype = {"float": np.float32, "float16": np.float16}.get(kind, np.int8)
        value = graph.constant("w", (weights(ROWS, COLUMNS) * 20).astype(dtype))
    if kind.startswith("int"):
        count = 1 if kind == "int8 as a whole" else ROWS
        value.meta["fields"] = {"quantization": per_channel([0.5] * count)}
    return value


def made(op_type: str, kind: str) -> Graph:
    graph = Graph("main")
    w = weight(graph, kind)
    if op_type == "FULLY_CONNECTED":
        graph.output(graph.fc(graph.input("x", [1, COLUMNS]), w, "y"))
    elif op_type == "EMBEDDING_LOOKUP":
        ids = graph.input("ids", [2], INT32)
        graph.output(graph.op(op_type, [ids, w], [2, COLUMNS], FLOAT, "y"))
    elif op_type == "DEQUANTIZE":
        graph.output(graph.op(op_type, [w], [ROWS, COLUMNS], FLOAT, "y"))
    return graph


@pytest.mark.parametrize(
    ("op_type", "kind", "version"),
    [
        ("FULLY_CONNECTED", "float", 1),
        ("FULLY_CONNECTED", "int8 by row", 12),
        ("FULLY_CONNECTED", "int8 as a whole", 3),
        ("EMBEDDING_LOOKUP", "float", 1),
        ("EMBEDDING_LOOKUP", "int8 by row", 4),
        ("EMBEDDING_LOOKUP", "int4", 4),
        ("DEQUANTIZE", "float16", 3),
        ("DEQUANTIZE", "int8 by row", 5),
        ("DEQUANTIZE", "int8 as a whole", 2),
        ("DEQUANTIZE", "int4", 6),
    ],
)
def test_by_what_is_stored(op_type: str, kind: str, version: int) -> None:
    graph = made(op_type, kind)
    (node,) = graph.ir
    assert minimum_version(node) == version
    node.version = version
    interpreter(formats.dumps(graph.model(format="tflite")))  # which LiteRT registers


def test_blocks_have_no_version_of_their_own() -> None:
    (node, _) = blockwise().graphs[0]
    assert minimum_version(node) == 1


def test_what_is_registered_late() -> None:
    graph = Graph("main")
    x, shape = graph.input("x", [1, 4]), graph.constant("shape", np.int32([3, 4]))
    (node,) = [graph.op("BROADCAST_TO", [x, shape], [3, 4]).producer()]
    assert node is not None
    assert minimum_version(node) == 2
