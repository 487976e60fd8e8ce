"""In which numbers a model's weights are stored, in a word or two for a reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path


def precision(file: Path) -> str:
    """`float32`, `dynamic int8`, ...: the recipe by which the weights of the model in `file` were quantised,
    where that was written down, else the type of most of their bytes. Raises ModelError."""
    from o2o import formats
    from o2o.formats.tensors import storage_key
    from o2o.quantization.metadata import recorded

    if file.suffix == ".onnx":
        return _of_onnx(file)
    model = formats.load(file)
    if steps := recorded(model):
        return str(steps[-1].get("recipe", "quantised")).replace("_", " ")
    constants = (value.const_value for graph in model.graphs for value in graph.initializers.values())
    stored = {storage_key(constant): constant for constant in constants if constant is not None}
    return _most((str(constant.dtype), constant.nbytes) for constant in stored.values())


def _of_onnx(file: Path) -> str:
    import onnx_ir as ir

    graph = ir.load(file).graph
    packed = {
        node.inputs[1]: f"int{node.attributes['bits'].as_int()}"
        for node in graph
        if node.op_type == "MatMulNBits"
    }
    constants = [(value, value.const_value) for value in graph.initializers.values()]
    return _most(
        (packed.get(value, str(constant.dtype)), constant.nbytes)
        for value, constant in constants
        if constant is not None
    )


def _most(stored: Iterable[tuple[str, int]]) -> str:
    """The type, of those with their bytes, that has most of these."""
    sizes: Counter[str] = Counter()
    for dtype, nbytes in stored:
        sizes[{"FLOAT": "float32"}.get(dtype, dtype.lower())] += nbytes
    return sizes.most_common(1)[0][0] if sizes else "no weights"
