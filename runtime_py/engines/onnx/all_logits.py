"""An ONNX model that returns the logits of each token, made from one that returns those of the last.

`o2o.lower.onnx` selects the row of the last token before the LM head. Without this node, the head computes
the logits of all tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from o2o.contract import METADATA_NAME
from runtime_py.model.contract import LENGTH

if TYPE_CHECKING:
    import onnx

_MAX_STEPS = 8
"""The largest number of nodes between the selection of the row and the logits."""


def return_all_logits(path: Path) -> bytes | None:
    """Remove the selection of the last token's row.

    Args:
        path: An ONNX file with an `o2o.contract`.

    Returns:
        The changed model, whose external data is still in the folder of `path`. None if the file has no
        contract or selects no row.

    Raises:
        OSError: The file cannot be read.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's DecodeError: ONNX Runtime refuses the file with a reason
        return None
    graph = model.graph
    metadata = next((entry for entry in model.metadata_props if entry.key == METADATA_NAME), None)
    if metadata is None:
        return None
    contract = json.loads(metadata.value)
    outputs = contract["signatures"].get("decode", {}).get("outputs", [])
    logits = next((entry for entry in outputs if entry.get("role") == "logits"), None)
    row = _selection(graph, logits["name"]) if logits else None
    if logits is None or row is None:
        return None
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == row.output[0]:
                node.input[index] = row.input[0]
    graph.node.remove(row)
    del graph.value_info[:]  # shapes with one row
    logits["shape"][-2] = LENGTH
    metadata.value = json.dumps(contract, separators=(",", ":"))
    (output,) = (value for value in graph.output if value.name == logits["name"])
    output.type.tensor_type.shape.dim[len(logits["shape"]) - 2].dim_param = LENGTH
    return model.SerializeToString()


def _selection(graph: onnx.GraphProto, logits: str) -> onnx.NodeProto | None:
    """The Slice from index -1 before the logits, or None."""
    import onnx.numpy_helper

    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}

    def before(name: str, steps: int) -> onnx.NodeProto | None:
        if not steps or (node := producers.get(name)) is None:
            return None
        if node.op_type == "Slice" and (start := constants.get(node.input[1])) is not None:
            return node if np.array_equal(onnx.numpy_helper.to_array(start), [-1]) else None
        # The row may be any operand: `2 * logits` is a Mul of a constant and the logits.
        selections = (before(operand, steps - 1) for operand in node.input)
        return next((selection for selection in selections if selection is not None), None)

    return before(logits, _MAX_STEPS)
