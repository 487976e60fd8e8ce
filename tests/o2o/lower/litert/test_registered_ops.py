"""Which operators LiteRT has: itself is asked, with a model of one operator each."""

from __future__ import annotations

import ai_edge_litert.schema_py_generated as tfl
import flatbuffers
import pytest
from ai_edge_litert.interpreter import Interpreter

from o2o.formats.schema import CIRCLE, TFLITE
from o2o.lower.litert.registered_ops import MINIMUM_VERSIONS, is_registered


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
def test_litert_says_so(name: str) -> None:
    if name in ("CUSTOM", "PLACEHOLDER_FOR_GREATER_OP_CODES"):
        assert not is_registered(name)
        return
    code, least = TFLITE.operator_codes[name], MINIMUM_VERSIONS.get(name, 1)
    assert knows(code, least) == is_registered(name)
    assert least == 1 or not knows(code, least - 1)


def test_nothing_of_circle_alone_is_registered() -> None:
    assert not [
        name for name in CIRCLE.operator_codes if name not in TFLITE.operator_codes and is_registered(name)
    ]
