"""An ONNX model with an input `num_logits`, made from one that returns the logits of the last token.

`o2o.lower.onnx` selects the row of the last token before the LM head: a Slice that begins at -1. Here it
begins at -`num_logits`, so each run says how many of its last tokens get logits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from o2o.contract import METADATA_NAME, NUM_LOGITS

if TYPE_CHECKING:
    import onnx

_MAX_STEPS = 8
"""The largest number of nodes between the selection of the row and the logits."""


def select_logits(path: Path) -> bytes | None:
    """Let an input select the rows of the last tokens, instead of the last one.

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
    start = f"{NUM_LOGITS}/start"
    place = next(index for index, node in enumerate(graph.node) if node is row)
    graph.node.insert(place, onnx.helper.make_node("Neg", [NUM_LOGITS], [start]))
    row.input[1] = start
    graph.input.append(onnx.helper.make_tensor_value_info(NUM_LOGITS, onnx.TensorProto.INT64, [1]))
    del graph.value_info[:]  # shapes with one row
    entry = {"name": NUM_LOGITS, "dtype": "int64", "shape": [1], "role": NUM_LOGITS}
    contract["signatures"]["decode"]["inputs"].append(entry)
    logits["shape"][-2] = NUM_LOGITS
    metadata.value = json.dumps(contract, separators=(",", ":"))
    (output,) = (value for value in graph.output if value.name == logits["name"])
    output.type.tensor_type.shape.dim[len(logits["shape"]) - 2].dim_param = NUM_LOGITS
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
