"""Quantized matrices in ONNX: the nodes that compute with them, in a standard form or ONNX Runtime's.

    standard    DequantizeLinear (int8 by row, int4 in blocks) or Cast (float16), then the same operator
    ort         MatMulNBits and GatherBlockQuantized: kernels take quantized weights and quantize activations

A float16 matrix is the same in both forms.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from o2o.formats.computed_tensors import UnsignedBlocks, lazy_floats
from o2o.formats.tensors import is_constant_node
from o2o.formats.transposed_tensor import TransposedTensor
from o2o.model import Model, dims_of
from o2o.operators.onnx_shape_inference import infer_shapes
from o2o.quantization.matrix import Matrix, Use
from o2o.quantization.recipes import Recipe
from o2o.quantization.tensors import QuantizedTensor
from o2o.rewriting.builder import add_tensor
from o2o.rewriting.onnx_builder import OnnxBuilder
from o2o.rewriting.onnx_opsets import raise_opsets

CONTRIB = "com.microsoft"
FORMS = ("standard", "ort")
BLOCKS = (128, 64, 32, 16)
"""Block sizes of MatMulNBits, the fastest first."""
INT8_COMPUTE = 4
"""The accuracy_level with which MatMulNBits multiplies int8."""
_PER_AXIS, _FLOAT16_SCALES, _BY_BLOCK = 13, 19, 21
"""The opsets since which DequantizeLinear has these."""


def prepare(model: Model, recipe: Recipe, form: str) -> list[str]:
    """Give a model what quantized matrices need: an opset, and the shapes of embeddings.

    Args:
        model: An ONNX model, changed in place.
        recipe: The recipe.
        form: `standard` or `ort`.

    Returns:
        Messages.

    Raises:
        ModelError: ONNX cannot convert an operator to the opset.
    """
    schemes = [s for s in (recipe.matrices, recipe.embedding, recipe.lm_head) if s is not None and s.limit]
    lines = []
    if schemes and (form == "standard" or recipe.explicit):
        dtypes = {v.dtype for graph in model.all_graphs() for v in graph.initializers.values()}
        needed = _BY_BLOCK if any(scheme.block for scheme in schemes) else _PER_AXIS
        needed = max(needed, _FLOAT16_SCALES if ir.DataType.FLOAT16 in dtypes else 0)
        if model.graphs[0].opset_imports.get("", 1) < needed:
            lines = raise_opsets([model], {"": needed})
            version = max(model.fields.get("ir_version", 0), _ir_version(needed))
            model.fields["ir_version"] = version
    gathers = (node for graph in model.all_graphs() for node in graph if node.op_type == "Gather")
    if any(node.outputs[0].shape is None for node in gathers):
        infer_shapes(model)
    return lines


def _ir_version(opset: int) -> int:
    return int(onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)]))


class OnnxForm:
    """Puts quantized matrices into a model."""

    def __init__(self, model: Model, form: str) -> None:
        """Begin with no matrix.

        Args:
            model: Changed in place.
            form: `standard` or `ort`.
        """
        self.model, self.form = model, form
        self._tensors: dict[Hashable, ir.TensorProtocol] = {}
        self._values: dict[Hashable, ir.Value] = {}

    def apply(self, matrix: Matrix, tensor: QuantizedTensor, explicit: bool) -> None:
        """Let all uses of a matrix compute with its quantized numbers.

        Args:
            matrix: The matrix.
            tensor: Its quantized numbers, [rows, columns].
            explicit: Whether they are converted to floats before they are multiplied.
        """
        native = self.form == "ort" and bool(tensor.scheme.limit) and not explicit
        for use in matrix.uses:
            if native and use.part == "embedding":
                self._look_up_blocks(use, matrix, tensor)
            elif native:
                self._multiply_blocks(use, matrix, tensor)
            elif use.part == "embedding" and tensor.dtype != ir.DataType.INT4:
                self._look_up(use, matrix, tensor)
            else:
                node, operand = use.first
                node.replace_input_with(operand, self._floats(use, matrix, tensor))
        for graph, value in matrix.values:
            _remove_unused(graph, value)
        for use in matrix.uses:
            for node in reversed(use.path):
                if node.graph is not None and not node.outputs[0].uses():
                    node.graph.remove(node, safe=True)
        for graph, value in matrix.values:
            _remove_unused(graph, value)

    # ---- constants ---------------------------------------------------------------------------------

    def _constant(
        self, use: Use, key: Hashable, make: Callable[[], ir.TensorProtocol], name: str
    ) -> ir.Value:
        """A constant of the graph of a use. Graphs share the tensor."""
        if key not in self._tensors:
            self._tensors[key] = make()
        of_graph = id(use.graph), key
        if of_graph not in self._values:
            self._values[of_graph] = add_tensor(use.graph, self._tensors[key], name)
        return self._values[of_graph]

    def _scales(
        self,
        use: Use,
        tensor: QuantizedTensor,
        shape: tuple[int, ...],
        dtype: ir.DataType,
        transposed: bool = False,
    ) -> ir.Value:
        """The scales [rows, blocks] in a shape. One for each row is repeated for each block."""

        def make() -> np.ndarray:
            scales = tensor.scales.T if transposed else tensor.scales
            if len(shape) > 1 and not transposed:
                scales = np.broadcast_to(scales, shape[:2])
            return scales.reshape(shape)

        key = "scales", shape, dtype, transposed, tensor.key
        return self._constant(use, key, lambda: lazy_floats(make, shape, dtype), f"{tensor.name}_scales")

    def _stored(self, use: Use, matrix: Matrix, tensor: QuantizedTensor) -> ir.Value:
        """The quantized numbers, with the axes of the constant before."""
        transposed = matrix.by_columns
        key = "stored", transposed, tensor.key
        name = f"{tensor.name}_{tensor.scheme.dtype.name.lower()}"
        return self._constant(
            use, key, lambda: TransposedTensor(name, tensor) if transposed else tensor, name
        )

    # ---- the standard form -------------------------------------------------------------------------

    def _floats(self, use: Use, matrix: Matrix, tensor: QuantizedTensor) -> ir.Value:
        """The matrix as floats, with the axes and the dtype of the constant before."""
        _, constant = next(each for each in matrix.values if each[0] is use.graph)
        dtype = _dtype(constant)
        key = id(use.graph), "floats", tensor.key
        if key in self._values:
            return self._values[key]
        stored = self._stored(use, matrix, tensor)
        op = OnnxBuilder(use.graph, before=use.graph[0] if len(use.graph) else None)
        shape, name = list(tensor.shape.numpy()), f"{tensor.name}_dequantized"
        shape = shape[::-1] if matrix.by_columns else shape
        if not tensor.scheme.limit:
            value = op.cast(stored, dtype, name)
        elif tensor.scheme.block:
            axis = 0 if matrix.by_columns else 1
            rows, blocks = tensor.stored_scales.shape
            by_axes = (blocks, rows) if matrix.by_columns else (rows, blocks)
            scales = self._scales(use, tensor, by_axes, dtype, matrix.by_columns)
            options = {"axis": axis, "block_size": tensor.scheme.block}
            value = op.node("DequantizeLinear", [stored, scales], shape, dtype, name, **options)
        else:
            scales = self._scales(use, tensor, (matrix.shape[0],), dtype)
            axis = 1 if matrix.by_columns else 0
            value = op.node("DequantizeLinear", [stored, scales], shape, dtype, name, axis=axis)
        self._values[key] = value
        return value

    def _look_up(self, use: Use, matrix: Matrix, tensor: QuantizedTensor) -> None:
        """Look up stored rows, and convert these alone."""
        node, ids, shape = use.node, use.node.inputs[1], list(dims_of(use.node.outputs[0]) or ())
        dtype = _dtype(node.inputs[0])
        op = OnnxBuilder(_graph_of(node), before=node, prefix=f"{node.outputs[0].name}/")
        rows = op.node("Gather", [self._stored(use, matrix, tensor), ids], shape, name="rows", axis=0)
        if not tensor.scheme.limit:
            _become(node, "Cast", [rows], to=int(dtype))
            return
        scales = self._scales(use, tensor, (matrix.shape[0], 1), dtype)
        numbers = op.cast(rows, dtype, "numbers")
        scale = op.node("Gather", [scales, ids], [*shape[:-1], 1], dtype, "scale", axis=0)
        _become(node, "Mul", [numbers, scale])

    # ---- the form of ONNX Runtime ------------------------------------------------------------------

    def _blocks(self, use: Use, tensor: QuantizedTensor) -> tuple[ir.Value, int, int]:
        """Unsigned numbers [rows, blocks, bytes of a block]; the number of blocks; the columns of a block."""
        rows, columns = tensor.shape.numpy()
        block = tensor.scheme.block or next((size for size in BLOCKS if columns % size == 0), BLOCKS[-1])
        key = "blocks", block, tensor.key
        name = f"{tensor.name}_{'Q4' if tensor.scheme.bits == 4 else 'Q8'}"
        stored = self._constant(use, key, lambda: UnsignedBlocks(tensor, rows, columns, block), name)
        return stored, -(-columns // block), block

    def _multiply_blocks(self, use: Use, matrix: Matrix, tensor: QuantizedTensor) -> None:
        node, (rows, columns) = use.node, matrix.shape
        stored, count, block = self._blocks(use, tensor)
        scales = self._scales(use, tensor, (rows, count), _dtype(node.inputs[1]))
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        inputs = [node.inputs[0], stored, scales]
        options = {
            "K": columns,
            "N": rows,
            "bits": tensor.scheme.bits,
            "block_size": block,
            "accuracy_level": INT8_COMPUTE,
        }
        self._import()
        if bias is not None and bias.shape is not None and list(bias.shape) == [rows]:
            _become(node, "MatMulNBits", [*inputs, None, None, bias], CONTRIB, **options)
        elif bias is None:
            _become(node, "MatMulNBits", inputs, CONTRIB, **options)
        else:
            op = OnnxBuilder(_graph_of(node), before=node, prefix=f"{node.outputs[0].name}/")
            output = op.result("product", inputs, dims_of(node.outputs[0]) or (), node.outputs[0].dtype)
            attributes = [ir.convenience.convert_attribute(key, item) for key, item in options.items()]
            op.add(ir.Node(CONTRIB, "MatMulNBits", inputs, attributes, outputs=[output], name=output.name))
            _become(node, "Add", [output, bias])

    def _look_up_blocks(self, use: Use, matrix: Matrix, tensor: QuantizedTensor) -> None:
        node, (rows, columns) = use.node, matrix.shape
        dtype, ids = _dtype(node.inputs[0]), node.inputs[1]
        stored, count, block = self._blocks(use, tensor)
        scales = self._scales(use, tensor, (rows, count, 1), dtype)
        op = OnnxBuilder(_graph_of(node), before=node, prefix=f"{node.outputs[0].name}/")
        leading = list(dims_of(node.outputs[0]) or ())[:-1]
        inputs = [stored, ids, scales]
        output = op.result("rows", inputs, [*leading, count, block], dtype)
        options = {
            "gather_axis": 0,
            "quantize_axis": 2,
            "block_size": block,
            "bits": tensor.scheme.bits,
        }
        attributes = [ir.convenience.convert_attribute(key, item) for key, item in options.items()]
        op.add(
            ir.Node(CONTRIB, "GatherBlockQuantized", inputs, attributes, outputs=[output], name=output.name)
        )
        self._import()
        whole = op.constant(np.array([0] * len(leading) + [count * block]), "shape")
        if count * block == columns:
            _become(node, "Reshape", [output, whole])
            return
        flat = op.node("Reshape", [output, whole], [*leading, count * block], dtype, "flat")
        bounds = [op.constant(np.array([number]), "bound") for number in (0, columns, -1)]
        _become(node, "Slice", [flat, *bounds])

    def _import(self) -> None:
        for graph in self.model.graphs:
            graph.opset_imports.setdefault(CONTRIB, 1)


def _dtype(value: ir.Value | None) -> ir.DataType:
    """The dtype of a constant, or of one that a Cast converts."""
    assert value is not None
    node = value.producer()
    if value.const_value is not None:
        return value.const_value.dtype
    if node is not None and node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    return _dtype(node.inputs[0]) if node is not None else ir.DataType.FLOAT


def _graph_of(node: ir.Node) -> ir.Graph:
    assert isinstance(node.graph, ir.Graph)
    return node.graph


def _become(
    node: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None] | list[ir.Value],
    domain: str = "",
    **attributes: Any,
) -> None:
    """Turn a node into another one with the same results."""
    node.domain, node.op_type, node.overload = domain, op_type, ""
    node.attributes.clear()
    for key, item in attributes.items():
        node.attributes[key] = ir.convenience.convert_attribute(key, item)
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def _remove_unused(graph: ir.Graph, value: ir.Value) -> None:
    if value.uses() or value.is_graph_output():
        return
    node = value.producer()
    if node is not None and is_constant_node(node):
        graph.remove(node, safe=True)
    elif value.name is not None and value.name in graph.initializers:
        del graph.initializers[value.name]
