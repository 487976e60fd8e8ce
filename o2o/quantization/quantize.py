"""Quantization of a model by a recipe: matrices become constants that are quantized while they are
written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from o2o.cli.progress import LONG, progress
from o2o.formats.litert_ops import minimum_version
from o2o.formats.onnx_writer import EXTERNAL, is_external
from o2o.formats.quantization_parameters import set_axis_quantization, set_block_quantization
from o2o.formats.tensors import constant_array, source_tensors, with_shape
from o2o.formats.transposed_tensor import TransposedTensor
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model, shape_of
from o2o.quantization.matrix import Matrix, Use
from o2o.quantization.metadata import record_step
from o2o.quantization.onnx_forms import OnnxForm
from o2o.quantization.recipes import Recipe
from o2o.quantization.schemes import Scheme, fitting, more_accurate
from o2o.quantization.tensors import QuantizedTensor
from o2o.quantization.weight_uses import LM_HEAD_SUFFIX, matrices
from o2o.rewriting.builder import Builder, add_constant, add_tensor
from o2o.rewriting.rewire import replace_output

# Bytes of a scale: of a row, with its zero point (float32 and int64); and of a block (float16).
ROW_SCALE, BLOCK_SCALE = 12, 2
# Upper bounds of the bytes of tables: for each value of a quantized constant, and for each added operator.
VALUE, OPERATOR = 256, 512
Apply = Callable[[Matrix, QuantizedTensor, bool], None]


@dataclass
class MatrixResult:
    """The result for one matrix.

    Attributes:
        name: Its name.
        parts: Its uses: `matrix`, `embedding`, `head`.
        shape: Its shape [rows, columns].
        scheme: Its scheme; None if it was not quantized.
        before: Its bytes in a file before.
        after: Its bytes in a file after, with scales.
        reason: Why it was not quantized.
        tensor: The new constant, which knows its error once it is written.
    """

    name: str
    parts: Sequence[str]
    shape: tuple[int, int]
    scheme: Scheme | None
    before: int
    after: int
    reason: str = ""
    tensor: QuantizedTensor | None = field(default=None, repr=False)


def quantize(model: Model, recipe: Recipe, form: str = "standard") -> list[MatrixResult]:
    """Quantize the matrices of a model. They are read once, for their scales.

    Args:
        model: The model, changed in place. `onnx_forms.prepare` has prepared one of ONNX.
        recipe: The recipe.
        form: Of ONNX: `standard` or `ort`.

    Returns:
        The result for each matrix, in the order of the model.

    Raises:
        ModelError: Numbers are not finite, or larger than their scheme can store.
        OSError: A checkpoint cannot be read.
    """
    split = [part for matrix in matrices(model) for part in _untied(matrix, recipe)]
    if any(is_external(part) for matrix in split for part in source_tensors(matrix.tensor)):
        model.fields[EXTERNAL] = True  # quantized weights are written beside the model, too
    total = sum(matrix.tensor.nbytes for matrix in split)
    apply = partial(_put, model) if model.format != "onnx" else OnnxForm(model, form).apply
    results = []
    with progress("quantize", total, shown=total >= LONG) as advance:
        for matrix in split:
            size = matrix.tensor.nbytes
            results.append(_quantize(model, matrix, recipe, apply))
            advance(size)
    sizes = [sum(result.before for result in results), sum(result.after for result in results)]
    record_step(model, recipe, [result.scheme.name for result in results if result.scheme], sizes)
    return results


def _untied(matrix: Matrix, recipe: Recipe) -> list[Matrix]:
    """`matrix`; or two matrices, if it is both embedding and LM head and the recipe unties them."""
    tied = matrix.parts == {"embedding", "head"} and not matrix.reason
    if not (recipe.untie and tied) or any(use.widened for use in matrix.uses):
        return [matrix]
    table, lm_head = Matrix(list(matrix.values)), Matrix(copied=True)
    for use in matrix.uses:
        (lm_head if use.part == "head" else table).uses.append(use)
    for graph in {id(use.graph): use.graph for use in lm_head.uses}.values():
        value = next(value for owner, value in matrix.values if owner is graph)
        copy = add_tensor(
            graph, with_shape(matrix.tensor, shape_of(value), ""), f"{value.name}{LM_HEAD_SUFFIX}"
        )
        lm_head.values.append((graph, copy))
        for use in lm_head.uses:
            if use.graph is graph:
                node, operand = use.first
                node.replace_input_with(operand, copy)
    return [table, lm_head]


def _quantize(model: Model, matrix: Matrix, recipe: Recipe, apply: Apply) -> MatrixResult:
    name, tensor = matrix.value.name or "", matrix.tensor
    parts, shape = sorted(matrix.parts), matrix.shape
    before = 0 if matrix.copied else tensor.nbytes
    unchanged = MatrixResult(name, parts, shape, None, before, tensor.nbytes)
    unchanged.reason = matrix.reason
    if unchanged.reason:
        return unchanged
    schemes = {"matrix": recipe.matrices, "embedding": recipe.embedding, "head": recipe.lm_head}
    scheme = schemes[parts[0]]
    for part in parts[1:]:  # tied: one constant, with the more accurate of both schemes
        scheme = more_accurate(scheme, schemes[part])
    if scheme is None:
        unchanged.reason = "the recipe has no scheme for it"
        return unchanged
    rows, columns = shape
    scheme = fitting(scheme, columns)
    explicit = recipe.explicit or not scheme.limit
    scales = rows * scheme.blocks(columns) * (BLOCK_SCALE if scheme.block else ROW_SCALE)
    after = rows * columns * scheme.bits // 8 + scales
    if after + _overhead(matrix, scheme, explicit) >= tensor.nbytes:
        unchanged.reason = "it would not become smaller"
        return unchanged
    source = TransposedTensor(name, tensor) if matrix.by_columns else tensor
    quantized = QuantizedTensor(name, source, scheme, (rows, columns))
    _add_to_unused(model, tensor)
    apply(matrix, quantized, explicit)
    return MatrixResult(name, parts, (rows, columns), scheme, before, after, tensor=quantized)


def _put(model: Model, matrix: Matrix, quantized: QuantizedTensor, explicit: bool) -> None:
    """Let all uses of a matrix compute with its quantized numbers."""
    for graph, value in matrix.values:
        _set_constant(model, graph, value, quantized)
    for use in matrix.uses:
        _apply(model, use, explicit)


def _overhead(matrix: Matrix, scheme: Scheme, explicit: bool) -> int:
    """An upper bound of the bytes that the scheme adds to the graph: tables and operators."""
    looked_up = sum(use.part == "embedding" for use in matrix.uses)
    added = 3 * looked_up + (len(matrix.uses) - looked_up if explicit else 0)
    return VALUE * len(matrix.values) * (2 if scheme.block else 1) + OPERATOR * added


def _add_to_unused(model: Model, tensor: ir.TensorProtocol) -> None:
    """Record that nothing refers to `tensor` any more: the model holds its quantized numbers."""
    if isinstance(tensor, UnboundTensor):
        model.unused.setdefault(str(tensor.path), {})[tensor.tensor_name] = ""


def _set_constant(model: Model, graph: ir.Graph, value: ir.Value, tensor: QuantizedTensor) -> None:
    value.const_value, value.type = tensor, ir.TensorType(tensor.dtype)
    if tensor.scheme.block:
        scales = add_constant(graph, tensor.stored_scales, f"{value.name}_scales")
        set_block_quantization(value, scales, tensor.scheme.block, model.format)
    elif tensor.scheme.limit:
        set_axis_quantization(value, tensor.scales, of=model.format)


def _apply(model: Model, use: Use, explicit: bool) -> None:
    """Change the node of `use` to compute with the quantized constant."""
    value = use.node.inputs[use.operand] if use.widened is None else use.widened.inputs[0]
    assert value is not None
    if use.part == "embedding":
        _look_up(model, use, value)
    elif explicit:
        use.node.replace_input_with(use.operand, _dequantized(use.graph, value))
    else:
        use.node.replace_input_with(use.operand, value)
        _widen_bias(use)
        use.node.version = max(use.node.version or 1, minimum_version(use.node))
    if use.widened is not None and not use.widened.outputs[0].uses():
        use.graph.remove(use.widened, safe=True)


def _widen_bias(use: Use) -> None:
    """Make a float16 bias behind a DEQUANTIZE a float32 constant: XNNPACK needs one beside int8 weights."""
    bias = use.node.inputs[2] if len(use.node.inputs) > 2 else None
    widening = bias.producer() if bias is not None else None
    if use.node.op_type != "FULLY_CONNECTED" or widening is None or widening.op_type != "DEQUANTIZE":
        return
    numbers = constant_array(widening.inputs[0])
    if numbers is not None and numbers.dtype == np.float16:
        name = f"{widening.outputs[0].name}_float32"
        use.node.replace_input_with(2, add_constant(use.graph, numbers.astype(np.float32), name))
        if not widening.outputs[0].uses() and not widening.outputs[0].is_graph_output():
            use.graph.remove(widening, safe=True)


def _dequantized(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """`value` as float32: the output of its only DEQUANTIZE in `graph`."""
    for node, _ in value.uses():
        if node.op_type == "DEQUANTIZE":
            return _versioned(node.outputs[0])
    op = Builder(graph, before=graph[0])
    name = f"{value.name}_float32"
    return _versioned(op.node("DEQUANTIZE", [value], shape_of(value), ir.DataType.FLOAT, name=name))


def _look_up(model: Model, use: Use, table: ir.Value) -> None:
    """Look up rows of a quantized table by EMBEDDING_LOOKUP, of a float16 table by GATHER and DEQUANTIZE."""
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
