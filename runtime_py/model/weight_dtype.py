"""Name of the dtype that a model's weights are stored in, for display."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from o2o.model import Model


def weight_dtype(model: Model) -> str:
    """Return the name of a model's weight dtype.

    Args:
        model: A Circle or TFLite model.

    Returns:
        The recipe that its weights were quantized with, as `dynamic int8`, if the model records one. Else
        the dtype of most bytes of its constants, as `float32`.
    """
    from o2o.formats.tensors import storage_key
    from o2o.quantization.metadata import recorded_steps

    if steps := recorded_steps(model):
        return str(steps[-1].get("recipe", "quantized")).replace("_", " ")
    constants = (value.const_value for graph in model.graphs for value in graph.initializers.values())
    stored = {storage_key(constant): constant for constant in constants if constant is not None}
    return _most_bytes((str(constant.dtype), constant.nbytes) for constant in stored.values())


def onnx_weight_dtype(file: Path) -> str:
    """Return the name of an ONNX model's weight dtype.

    Args:
        file: An ONNX file.

    Returns:
        The dtype of most bytes of its initializers; `int4` or `int8` for the weights of MatMulNBits.
    """
    import onnx_ir as ir

    graph = ir.load(file).graph
    packed = {
        node.inputs[1]: f"int{node.attributes['bits'].as_int()}"
        for node in graph
        if node.op_type == "MatMulNBits"
    }
    constants = [(value, value.const_value) for value in graph.initializers.values()]
    return _most_bytes(
        (packed.get(value, str(constant.dtype)), constant.nbytes)
        for value, constant in constants
        if constant is not None
    )


def _most_bytes(constants: Iterable[tuple[str, int]]) -> str:
    """The dtype with the most bytes, from pairs (dtype, bytes)."""
    sizes: Counter[str] = Counter()
    for dtype, nbytes in constants:
        sizes[{"FLOAT": "float32"}.get(dtype, dtype.lower())] += nbytes
    return sizes.most_common(1)[0][0] if sizes else "no weights"
