"""Operator versions: LiteRT itself is asked, with a model of one operator each."""

from __future__ import annotations

import ai_edge_litert.schema_py_generated as tfl
import flatbuffers
import numpy as np
import onnx_ir as ir
import pytest
from ai_edge_litert.interpreter import Interpreter

from o2o import formats
from o2o.formats.litert_ops import MINIMUM_VERSIONS, is_registered, minimum_version
from o2o.formats.schema import CIRCLE, TFLITE
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
        count = 1 if kind == "int8 per tensor" else ROWS
        value.meta["fields"] = {"quantization": per_channel([0.5] * count)}
    return value


def graph_of(op_type: str, kind: str) -> Graph:
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
        ("FULLY_CONNECTED", "int8 per row", 12),
        ("FULLY_CONNECTED", "int8 per tensor", 3),
        ("EMBEDDING_LOOKUP", "float", 1),
        ("EMBEDDING_LOOKUP", "int8 per row", 4),
        ("EMBEDDING_LOOKUP", "int4", 4),
        ("DEQUANTIZE", "float16", 3),
        ("DEQUANTIZE", "int8 per row", 5),
        ("DEQUANTIZE", "int8 per tensor", 2),
        ("DEQUANTIZE", "int4", 6),
    ],
)
def test_version_by_weight_dtype(op_type: str, kind: str, version: int) -> None:
    graph = graph_of(op_type, kind)
    (node,) = graph.ir
    assert minimum_version(node) == version
    node.version = version
    interpreter(formats.dumps(graph.model(format="tflite")))  # which LiteRT registers


def test_blocks_have_no_version_of_their_own() -> None:
    (node, _) = blockwise().graphs[0]
    assert minimum_version(node) == 1


def test_the_first_registered_version_may_be_later() -> None:
    graph = Graph("main")
    x, shape = graph.input("x", [1, 4]), graph.constant("shape", np.int32([3, 4]))
    (node,) = [graph.op("BROADCAST_TO", [x, shape], [3, 4]).producer()]
    assert node is not None
    assert minimum_version(node) == 2


def knows(code: int, version: int) -> bool:
    """Whether LiteRT's interpreter, on loading, finds the builtin operator of that code and version."""
    model = tfl.ModelT()
    model.version = 3
    model.buffers = [tfl.BufferT()]
    graph = tfl.SubGraphT()
    graph.tensors = [tfl.TensorT(), tfl.TensorT()]
    for tensor in graph.tensors:
        tensor.shape = [1]
    operator = tfl.OperatorT()
    graph.inputs, graph.outputs = operator.inputs, operator.outputs = [0], [1]
    graph.operators = [operator]
    kind = tfl.OperatorCodeT()
    kind.builtinCode, kind.deprecatedBuiltinCode, kind.version = code, min(code, 127), version
    model.operatorCodes, model.subgraphs = [kind], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    try:
        Interpreter(model_content=bytes(builder.Output()))
    except (ValueError, RuntimeError) as error:
        return "Didn't find op" not in str(error)
    return True


@pytest.mark.parametrize("name", sorted(TFLITE.operator_codes))
def test_is_registered_agrees_with_litert(name: str) -> None:
    if name in ("CUSTOM", "PLACEHOLDER_FOR_GREATER_OP_CODES"):
        assert not is_registered(name)
        return
    code, least = TFLITE.operator_codes[name], MINIMUM_VERSIONS.get(name, 1)
    assert knows(code, least) == is_registered(name)
    assert least == 1 or not knows(code, least - 1)


def test_circle_operators_are_not_registered() -> None:
    assert not [
        name for name in CIRCLE.operator_codes if name not in TFLITE.operator_codes and is_registered(name)
    ]
