"""Products of one input with several matrices, fused into one product with stacked weights.

Circle's FULLY_CONNECTED, ONNX's MatMul and Gemm, and ONNX Runtime's MatMulNBits are such products.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_constant, storage_key
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import DOMAIN, Model, attribute, dims_of, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.onnx_builder import builder_for
from o2o.rewriting.rewire import replace_output
from o2o.rewriting.stacked_weights import stack_weights

_Key = tuple[Hashable, ...]
"""The weights of a product, by their storage."""
_Group = tuple[_Key, ...]
"""Weights to stack, in order."""
_SPLIT_HAS_OPERAND = 13
"""The first opset in which the sizes of Split are an operand."""


@dataclass
class FusedProducts:
    """The number of products that were fused, and the number of those that replace them."""

    before: int = 0
    after: int = 0


@dataclass(frozen=True)
class _Product:
    """A product whose weights can be stacked.

    Attributes:
        node: The operator. Operand 0 is its input, operand 1 its matrix.
        weights: Its constant operands by number.
        axes: The axis along which each of them is stacked.
        key: Equal for products with the same weights.
        width: The last dimension of its result.
    """

    node: ir.Node
    weights: Mapping[int, ir.Value]
    axes: Mapping[int, int]
    key: _Key
    width: int


def fuse_products(model: Model) -> FusedProducts:
    """Fuse the products of each input with constant matrices, in all graphs of a model, in place.

    Graphs that share matrices share the stacked ones. A graph that uses only some matrices of a group
    computes the others' products too.

    Args:
        model: Its weights are constants, or quantized by row or by block. Weights in a checkpoint stay.

    Returns:
        How many products became how many.
    """
    sibling_lists = [products for graph in model.graphs for products in _siblings(graph)]
    groups = _groups(sibling_lists)
    by_key = {product.key: product for products in sibling_lists for product in products}
    result = FusedProducts()
    for graph in model.graphs:
        for products in _siblings(graph):
            for group in groups:
                members = {product.key: product.node for product in products if product.key in group}
                if members and _fuse(model, graph, members, [by_key[key] for key in group]):
                    result.before += len(members)
                    result.after += 1
        if result.after:
            remove_dead_nodes(graph)
            remove_dead_constants(graph)
    return result


def _siblings(graph: ir.Graph) -> Iterator[list[_Product]]:
    """The products of each input that can be fused, in graph order."""
    by_input: dict[tuple[object, ...], list[_Product]] = defaultdict(list)
    for node in graph:
        product = _product(node)
        if product is None:
            continue
        options = tuple(sorted((k, a.value) for k, a in node.attributes.items() if k != "N"))
        kind = (node.domain, node.op_type, options, node.version, tuple(product.axes))
        outer = (dims_of(node.outputs[0]) or ())[:-1]
        by_input[node.inputs[0], *kind, outer].append(product)
    return iter(by_input.values())


def _product(node: ir.Node) -> _Product | None:
    axes = _stacking_axes(node)
    if axes is None or len(node.outputs) != 1 or node.inputs[0] is None:
        return None
    weights = {}
    keys = []
    for operand in axes:
        value = node.inputs[operand]
        tensor = value.const_value if value is not None and is_constant(value) else None
        if value is None or tensor is None or isinstance(tensor, UnboundTensor):
            return None
        weights[operand] = value
        keys.append(storage_key(tensor))
    return _Product(node, weights, axes, tuple(keys), shape_of(weights[1])[axes[1]])


def _stacking_axes(node: ir.Node) -> dict[int, int] | None:
    """The operands that are stacked, and the axis of each; None for another operator."""
    matrix = node.inputs[1] if len(node.inputs) > 1 else None
    if matrix is None:
        return None
    match node.domain, node.op_type:
        case (str(domain), "FULLY_CONNECTED") if domain == DOMAIN:
            is_plain = not (
                any(node.inputs[2:])
                or attribute(node, "fusedActivationFunction", 0)
                or node.meta.get("fields")
            )
            return {1: 0} if is_plain else None
        case "", "MatMul":
            return {1: 1} if len(dims_of(matrix) or ()) == 2 else None
        case "", "Gemm":
            axes = {1: 0 if attribute(node, "transB", 0) else 1}
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            if bias is None:
                return axes
            width = (dims_of(matrix) or ())[axes[1]]
            return {**axes, 2: 0} if dims_of(bias) == (width,) else None
        case "com.microsoft", "MatMulNBits":
            operands = {operand for operand, value in enumerate(node.inputs) if operand and value is not None}
            return dict.fromkeys(sorted(operands), 0) if operands <= {1, 2, 3, 5} else None
    return None


def _groups(sibling_lists: Sequence[Sequence[_Product]]) -> list[_Group]:
    """Disjoint groups of weights that read one input in some graph, the largest first."""
    candidates = {tuple(dict.fromkeys(product.key for product in products)) for products in sibling_lists}
    groups: list[_Group] = []
    grouped: set[_Key] = set()
    for group in sorted(candidates, key=len, reverse=True):
        if len(group) > 1 and not grouped & set(group):
            groups.append(group)
            grouped |= set(group)
    return groups


def _fuse(model: Model, graph: ir.Graph, nodes: Mapping[_Key, ir.Node], group: Sequence[_Product]) -> bool:
    """Replace `nodes`, which read one input, by one node. False if their weights cannot be stacked."""
    first = next(iter(nodes.values()))
    operands = list(first.inputs)
    for operand, axis in group[0].axes.items():
        stacked = stack_weights(graph, [product.weights[operand] for product in group], axis)
        if stacked is None:
            return False
        operands[operand] = stacked
    old = first.outputs[0]
    op = builder_for(graph, before=first, prefix=f"{old.name}/")
    options = {key: option for key, option in first.attributes.items() if key != "N"}
    width = sum(product.width for product in group)
    if "N" in first.attributes:
        options["N"] = ir.AttrInt64("N", width)
    outer = None if old.shape is None else list(old.shape)[:-1]
    joined = _result(op, "joined", outer, width, old)
    op.add(
        ir.Node(
            first.domain, first.op_type, operands, options.values(), outputs=[joined], version=first.version
        )
    )
    parts = _slices(op, joined, group) if first.domain == DOMAIN else _split(op, joined, outer, group)
    for product, part in zip(group, parts, strict=True):
        if product.key in nodes:
            replace_output(model, nodes[product.key].outputs[0], part)
    return True


def _result(op: Builder, name: str, outer: Sequence[object] | None, width: int, like: ir.Value) -> ir.Value:
    shape = None if outer is None else ir.Shape([*outer, width])  # type: ignore[list-item]
    return ir.Value(name=op.fresh(name), shape=shape, type=like.type)


def _slices(op: Builder, joined: ir.Value, group: Sequence[_Product]) -> list[ir.Value]:
    """The result of each product of Circle's group. Slices that nothing uses are removed as dead nodes."""
    *outer, _ = shape_of(joined)
    starts = np.cumsum([0, *(product.width for product in group)])
    return [
        op.slice(joined, [0] * len(outer) + [int(start)], [*outer, product.width], "part")
        for start, product in zip(starts, group, strict=False)
    ]


def _split(
    op: Builder, joined: ir.Value, outer: Sequence[object] | None, group: Sequence[_Product]
) -> list[ir.Value]:
    """The result of each product of ONNX's group."""
    widths = [product.width for product in group]
    parts = [_result(op, "part", outer, width, joined) for width in widths]
    options: list[ir.Attr] = [ir.AttrInt64("axis", -1)]
    operands = [joined]
    if op.graph.opset_imports.get("", _SPLIT_HAS_OPERAND) < _SPLIT_HAS_OPERAND:
        options.append(ir.AttrInt64s("split", widths))
    else:
        operands.append(op.constant(np.asarray(widths, np.int64), "widths"))
    op.add(ir.Node("", "Split", operands, options, outputs=parts, name=parts[0].name))
    return parts
