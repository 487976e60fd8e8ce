"""Raised graphs on LiteRT against ONNX's reference evaluator, on the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
from ai_edge_litert.interpreter import Interpreter
from onnx.reference import ReferenceEvaluator

from o2o import formats
from o2o.formats.onnx_reader import decode
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from o2o.raising import raise_model


def parsed(inputs: str, outputs: str, nodes: str, opset: int = 21, constants: str = "") -> onnx.ModelProto:
    """Make an ONNX model from ONNX's text form.

    Args:
        inputs: The inputs with types, such as `float[2,3] x`.
        outputs: The outputs with types.
        nodes: The nodes, one after the other.
        opset: The version of ONNX's operators.
        constants: The constants, such as `int64[1] axes = {1}`.

    Returns:
        The model.
    """
    header = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    return onnx.parser.parse_model(f"{header} g ({inputs}) => ({outputs}) <{constants}> {{{nodes}}}")


def raised(proto: onnx.ModelProto) -> Model:
    """Raise a model that ONNX has as a message.

    Args:
        proto: The model.

    Returns:
        The Circle model.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return raise_model(decode(copy, [], None), in_float32=False)


def feeds_of(proto: onnx.ModelProto) -> dict[str, Any]:
    """Make numbers for the inputs of a model: floats around 0, and small integers.

    Args:
        proto: The model.

    Returns:
        The arrays by input.
    """
    random = np.random.default_rng(0)
    feeds = {}
    for value in proto.graph.input:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = [dim.dim_value for dim in tensor.shape.dim]
        numbers = random.standard_normal(shape) if dtype.kind == "f" else random.integers(0, 2, shape)
        feeds[value.name] = np.asarray(numbers, dtype)
    return feeds


def assert_same(
    proto: onnx.ModelProto, feeds: dict[str, Any] | None = None, tolerance: float = 1e-5
) -> Model:
    """Compare the outputs of a model with those of what it is raised to.

    Args:
        proto: The model.
        feeds: Its inputs; None for `feeds_of`.
        tolerance: The largest difference of a number, absolute or relative.

    Returns:
        The Circle model.
    """
    feeds = feeds_of(proto) if feeds is None else feeds
    wanted = ReferenceEvaluator(proto).run(None, feeds)
    model = raised(proto)
    names = [value.name for value in proto.graph.output]
    outputs = on_litert(raised(proto), feeds)
    for name, array in zip(names, wanted, strict=True):
        actual = outputs[name]
        assert actual.dtype == array.dtype, name
        np.testing.assert_allclose(actual, array, rtol=tolerance, atol=tolerance, err_msg=str(name))
    assert list(model.signatures[0].outputs) == names
    return model


def on_litert(model: Model, feeds: dict[str, Any]) -> dict[str, Any]:
    """Run a Circle model on LiteRT.

    Args:
        model: The model, which is lowered in place.
        feeds: The inputs of its first signature.

    Returns:
        The outputs by name.
    """
    signature = model.signatures[0].name
    interpreter = Interpreter(model_content=bytes(formats.dumps(lower_to_litert(model))))
    outputs: dict[str, Any] = interpreter.get_signature_runner(signature)(**feeds)
    return outputs


def operators(model: Model) -> list[str]:
    """Return the operators of the first graph in order.

    Args:
        model: The model.

    Returns:
        Their names.
    """
    return [node.op_type for node in model.graphs[0]]
