"""One ONNX node on ONNX Runtime, and raised on the reference kernels: both compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from o2o.model import DOMAIN
from o2o.operators.reference import run_graph
from o2o.raising import Raised, raise_graph
from o2o.raising.operation import NotRaised

ORT = "com.microsoft"


def model_of(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    outputs: int | Sequence[bool],
    constant: Sequence[int] = (),
    domain: str = ORT,
    opset: int = 22,
    shapes: Mapping[int, Sequence[int]] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """Make a model of one node.

    Args:
        op_type: The operator.
        inputs: The numbers of its operands; None for one that is absent.
        outputs: How many outputs it has, or which of them.
        constant: The numbers of the operands that are constants.
        domain: The domain of the operator.
        opset: The version of ONNX's own domain.
        shapes: The shapes of outputs by number; the others have none.
        **attributes: The attributes.

    Returns:
        The model. Its inputs are x0, x1, ..., its outputs y0, y1, ...
    """
    present = [True] * outputs if isinstance(outputs, int) else outputs
    names = [f"x{index}" if x is not None else "" for index, x in enumerate(inputs)]
    results = [f"y{index}" if there else "" for index, there in enumerate(present)]
    node = onnx.helper.make_node(op_type, names, results, domain=domain, **attributes)
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for index, (name, x) in enumerate(zip(names, inputs, strict=True))
        if x is not None and index not in constant
    ]
    constants = [onnx.numpy_helper.from_array(inputs[index], f"x{index}") for index in constant]
    float_type = onnx.TensorProto.FLOAT
    values = [
        onnx.helper.make_tensor_value_info(name, float_type, (shapes or {}).get(index))
        for index, name in enumerate(results)
        if name
    ]
    graph = onnx.helper.make_graph([node], "node", infos, values, constants)
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(ORT, 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def raised(model: onnx.ModelProto) -> Raised:
    """Raise the graph of a model.

    Args:
        model: The model.

    Returns:
        The raised graph.

    Raises:
        NotRaised: A node has no counterpart.
    """
    result = raise_graph(ir.serde.deserialize_model(model).graph)
    if result.unsupported:
        raise NotRaised(result.unsupported[0].reason)
    return result


def results(model: onnx.ModelProto, inputs: Sequence[np.ndarray | None]) -> tuple[list, list, ir.Graph]:
    """Run a model on ONNX Runtime, and raised.

    Args:
        model: A model of `model_of`.
        inputs: The numbers of the operands.

    Returns:
        The outputs of ONNX Runtime, those of the raised graph, and this graph.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {value.name: inputs[int(value.name[1:])] for value in model.graph.input}
    expected = session.run(None, feeds)
    graph = raised(model).graph
    known = {
        value.name or "": np.asarray(feeds[value.name or ""]).astype(value.dtype.numpy())  # type: ignore
        for value in graph.inputs
    }
    actual = run_graph(graph, known)
    return expected, [actual[value.name or ""] for value in graph.outputs], graph


def operators(graph: ir.Graph) -> list[str]:
    """List the operators of a raised graph.

    Args:
        graph: The graph.

    Returns:
        The types of its nodes; those of other domains with the domain.
    """
    return [node.op_type if node.domain == DOMAIN else f"{node.domain}.{node.op_type}" for node in graph]
