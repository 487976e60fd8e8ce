"""A recipe carried out on a model: its matrices become constants that are quantised as they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from o2o.formats.external_tensor import ExternalTensor
from o2o.formats.op_versions import minimum_version
from o2o.formats.schema import DIALECTS
from o2o.formats.tensors import with_shape
from o2o.model import Model, shape_of
from o2o.quantization.metadata import record
from o2o.quantization.recipes import Recipe
from o2o.quantization.schemes import Scheme, fitting, more_exact
from o2o.quantization.tensors import QuantizedTensor
from o2o.quantization.weight_uses import HEAD, Matrix, Use, matrices
from o2o.rewriting.builder import Builder, add_constant, add_tensor
from o2o.rewriting.rewire import replace_output

# Bytes of a scale: among a tensor's parameters, with its zero point, which is an int64; and of a block.
PARAMETERS, HALF = 12, 2
# Bytes of tables, at most: for each value that is a quantised constant, and for each operator that is added
# with what it needs.
VALUE, OPERATOR = 256, 512


@dataclass
class Done:
    """What became of a matrix. scheme: None when it was left as it is, for `reason`. before, after: bytes in
    a file, with its scales. tensor: knows its error when it has been written."""

    name: str
    parts: Sequence[str]
    shape: tuple[int, int]
    scheme: Scheme | None
    before: int
    after: int
    reason: str = ""
    tensor: QuantizedTensor | None = field(default=None, repr=False)


def quantize(model: Model, recipe: Recipe) -> list[Done]:
    """Carry out `recipe` on `model`, changed in place; what became of each of its matrices.

    Reads the matrices once, for their scales. Raises ModelError for numbers that cannot be stored.
    """
    found = [part for matrix in matrices(model) for part in _parted(matrix, recipe)]
    done = [_quantize(model, matrix, recipe) for matrix in found]
    sizes = [sum(one.before for one in done), sum(one.after for one in done)]
    record(model, recipe, [one.scheme.name for one in done if one.scheme], sizes)
    return done


def _parted(matrix: Matrix, recipe: Recipe) -> list[Matrix]:
    """`matrix`; or two, where it is both embedding and head and the recipe wants these apart."""
    tied = matrix.parts == {"embedding", "head"} and not matrix.reason
    if not (recipe.apart and tied) or any(use.widened for use in matrix.uses):
        return [matrix]
    table, head = Matrix(list(matrix.values)), Matrix(copied=True)
    for use in matrix.uses:
        (head if use.part == "head" else table).uses.append(use)
    for graph in {id(use.graph): use.graph for use in head.uses}.values():
        (value,) = (value for owner, value in matrix.values if owner is graph)
        twin = add_tensor(graph, with_shape(matrix.tensor, shape_of(value), ""), f"{value.name}{HEAD}")
        head.values.append((graph, twin))
        for use in head.uses:
            if use.graph is graph:
                use.node.replace_input_with(use.operand, twin)
    return [table, head]


def _quantize(model: Model, matrix: Matrix, recipe: Recipe) -> Done:
    name, tensor = matrix.value.name or "", matrix.tensor
    parts, shape = sorted(matrix.parts), shape_of(matrix.value)
    before = 0 if matrix.copied else tensor.nbytes
    left = Done(name, parts, shape, None, before, tensor.nbytes)  # type: ignore[arg-type]
    left.reason = matrix.reason
    if left.reason:
        return left
    schemes = {"matrix": recipe.matrices, "embedding": recipe.embedding, "head": recipe.head}
    scheme = schemes[parts[0]]
    for part in parts[1:]:  # tied: one constant, as good as the better of both
        scheme = more_exact(scheme, schemes[part])
    if scheme is None:
        left.reason = "the recipe leaves it"
        return left
    rows, columns = shape
    scheme = fitting(scheme, columns)
    explicit = recipe.explicit or not scheme.limit
    scales = rows * scheme.blocks(columns) * (HALF if scheme.block else PARAMETERS)
    after = rows * columns * scheme.bits // 8 + scales
    if after + _overhead(matrix, scheme, explicit) >= tensor.nbytes:
        left.reason = "it would not become smaller"
        return left
    found = QuantizedTensor(name, tensor, scheme, (rows, columns))
    _tell_unused(model, tensor)
    quantization = _quantization(model, found)
    for graph, value in matrix.values:
        _become(graph, value, found, quantization)
    for use in matrix.uses:
        _apply(model, use, explicit)
    return Done(name, parts, (rows, columns), scheme, before, after, tensor=found)


def _overhead(matrix: Matrix, scheme: Scheme, explicit: bool) -> int:
    """Bytes of what else the matrix needs by `scheme`, at most: tables, operators."""
    looked_up = sum(use.part == "embedding" for use in matrix.uses)
    added = 3 * looked_up + (len(matrix.uses) - looked_up if explicit else 0)
    return VALUE * len(matrix.values) * (2 if scheme.block else 1) + OPERATOR * added


def _tell_unused(model: Model, tensor: ir.TensorProtocol) -> None:
    """What is quantised becomes numbers of the model: nothing refers to it any more."""
    if isinstance(tensor, ExternalTensor):
        model.unused.setdefault(str(tensor.path), {})[tensor.tensor_name] = ""


def _quantization(model: Model, tensor: QuantizedTensor) -> Any:
    """The parameters that say what the stored numbers stand for; None for float16. References to the scales
    of blocks are the value's own."""
    if not tensor.scheme.limit:
        return None
    table = DIALECTS[model.format].table
    parameters = table("QuantizationParameters")()
    if tensor.scheme.block:
        details = table("BlockwiseQuantization")()
        details.blockSize, details.zeroPoints = tensor.scheme.block, -1
        parameters.details = details
        return parameters
    parameters.scale = tensor.scales.reshape(-1)
    parameters.zeroPoint = np.zeros(len(parameters.scale), np.int64)
    parameters.quantizedDimension = 0
    return parameters


def _become(graph: ir.Graph, value: ir.Value, tensor: QuantizedTensor, quantization: Any) -> None:
    value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)
    if quantization is not None:
        value.meta["fields"] = {**value.meta.get("fields", {}), "quantization": quantization}
    if tensor.scheme.block:
        scales = add_constant(graph, tensor.stored_scales, f"{value.name}_scales")
        value.meta["quantization_constants"] = {"scales": scales}


def _apply(model: Model, use: Use, explicit: bool) -> None:
    """Let the node of `use` compute with the constant that it has become."""
    value = use.node.inputs[use.operand] if use.widened is None else use.widened.inputs[0]
    assert value is not None
    if use.part == "embedding":
        _look_up(model, use, value)
    elif explicit:
        use.node.replace_input_with(use.operand, _dequantized(use.graph, value))
    else:
        use.node.replace_input_with(use.operand, value)
        use.node.version = max(use.node.version or 1, minimum_version(use.node))
    if use.widened is not None and not use.widened.outputs[0].uses():
        use.graph.remove(use.widened, safe=True)


def _dequantized(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """`value` as float32, by the one DEQUANTIZE of it in `graph`."""
    for node, _ in value.uses():
        if node.op_type == "DEQUANTIZE":
            return _versioned(node.outputs[0])
    op = Builder(graph, before=graph[0])
    found = op.node("DEQUANTIZE", [value], shape_of(value), ir.DataType.FLOAT, name=f"{value.name}_float32")
    return _versioned(found)


def _look_up(model: Model, use: Use, table: ir.Value) -> None:
    """EMBEDDING_LOOKUP, which makes float rows of integers; of float16, which it does not know, GATHER."""
    node, old = use.node, use.node.outputs[0]
    op = Builder(use.graph, before=node, prefix=f"{old.name}/")
    shape = shape_of(old)
    if table.dtype == ir.DataType.FLOAT16:
        gathered = node.op_type == "GATHER"
        ids = node.inputs[1 if gathered else 0]
        rows = op.node("GATHER", [table, ids], shape, name="rows", axis=0, batchDims=0)
        new = _versioned(op.node("DEQUANTIZE", [rows], shape, ir.DataType.FLOAT, name="float32"))
    elif node.op_type == "EMBEDDING_LOOKUP":
        node.replace_input_with(use.operand, table)
        node.version = max(node.version or 1, minimum_version(node))
        return
    else:
        ids = node.inputs[1]
        assert ids is not None
        count = int(np.prod(shape_of(ids)))
        if ids.dtype != ir.DataType.INT32:
            ids = op.node("CAST", [ids], shape_of(ids), ir.DataType.INT32, name="ids")
        ids = op.reshape(ids, [count], name="row")
        rows = op.node("EMBEDDING_LOOKUP", [ids, table], [count, shape[-1]], ir.DataType.FLOAT, name="rows")
        new = op.reshape(_versioned(rows), shape, name="looked_up")
    replace_output(model, old, new)
    use.graph.remove(node, safe=True)


def _versioned(value: ir.Value) -> ir.Value:
    node = value.producer()
    assert node is not None
    node.version = minimum_version(node)
    return value
