"""The uses of an ONNX model's matrices: by MatMul, Gemm and Gather, also behind a Transpose or a Cast."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from o2o.formats.tensors import constants_of, is_constant
from o2o.model import Model, attribute, nested_graphs, operands
from o2o.operators.traits import is_elementwise, passes_through
from o2o.quantization.matrix import FLOATS, Part, Use, is_tokens, logits_of

LONGEST_PATH = 4
"""Nodes between a constant and the operator that takes it."""
_BIAS = 2  # the operand of Gemm


def onnx_uses(model: Model) -> Iterator[tuple[ir.Graph, ir.Value, list[Use]]]:
    """Find the uses of floating-point constants.

    Args:
        model: An ONNX model.

    Yields:
        The graph of a constant, the constant, and its uses. Graphs in nodes are searched, functions are not.
    """
    for root in model.graphs:
        lm_heads = set(_lm_heads(model, root))
        for graph in (root, *(inner for node in root for inner in nested_graphs(node))):
            for value in dict.fromkeys(constants_of(graph)):
                tensor = value.const_value
                if tensor is None or tensor.dtype not in FLOATS or not is_constant(value):
                    continue
                yield graph, value, list(_uses(model, root, graph, value, lm_heads, (), False))


def _uses(
    model: Model,
    root: ir.Graph,
    graph: ir.Graph,
    value: ir.Value,
    lm_heads: set[ir.Node],
    path: tuple[ir.Node, ...],
    transposed: bool,
) -> Iterator[Use]:
    """The uses of a value, which is the constant behind `path`, or that transposed."""
    for node, operand in value.uses():
        if len(path) < LONGEST_PATH and _is_on_path(node):
            through = (*path, node)
            turns = transposed != (node.op_type == "Transpose")
            yield from _uses(model, root, graph, node.outputs[0], lm_heads, through, turns)
            continue
        reason = _unfit(model, root, node, operand, value, path)
        part: Part | None = None
        if not reason:
            part = "embedding" if node.op_type == "Gather" else "head" if node in lm_heads else "matrix"
        yield Use(
            graph, node, operand, part, reason, path=path, by_columns=transposed != _takes_columns(node)
        )


def _is_on_path(node: ir.Node) -> bool:
    """Whether the result is the matrix of operand 0, transposed or in another dtype."""
    if node.domain != "" or node.outputs[0].is_graph_output():
        return False
    if node.op_type == "Transpose":
        return list(attribute(node, "perm", [1, 0])) == [1, 0]
    if node.op_type == "Cast":
        return ir.DataType(attribute(node, "to", 0)) in FLOATS
    return node.op_type == "Identity"


def _takes_columns(node: ir.Node) -> bool:
    """Whether an operator takes a matrix with a column for each result."""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))


def _unfit(
    model: Model, root: ir.Graph, node: ir.Node, operand: int, value: ir.Value, path: tuple[ir.Node, ...]
) -> str:
    """Why `value` cannot be quantized for `node`; "" if it can."""
    if node.domain != "" or (node.op_type, operand) not in (("MatMul", 1), ("Gemm", 1), ("Gather", 0)):
        return f"{node.op_type} takes no quantized operand here"
    constant = path[0].inputs[0] if path else value
    assert constant is not None
    tensor = constant.const_value
    if tensor is None or len(tensor.shape) != 2:
        return "it is not a matrix"
    if node.op_type == "Gemm":
        scaled = attribute(node, "alpha", 1.0) != 1 or (
            _bias(node) is not None and attribute(node, "beta", 1.0) != 1
        )
        if scaled or attribute(node, "transA", 0):
            return "Gemm scales its operands, or transposes the other one"
    if node.op_type == "Gather":
        if attribute(node, "axis", 0):
            return "Gather does not look up rows"
        if not _are_tokens(model, root, node.inputs[1]):
            return "its rows are not looked up by token ids"
    return ""


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[_BIAS] if len(node.inputs) > _BIAS else None


def _are_tokens(model: Model, root: ir.Graph, ids: ir.Value | None) -> bool:
    while ids is not None and (node := ids.producer()) is not None and passes_through(node):
        ids = node.inputs[0]
    return ids is not None and is_tokens(model, root, ids)


def _lm_heads(model: Model, graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes that compute logits by a product, also before a bias, a scale or a soft cap."""
    for value in logits_of(model, graph):
        current: ir.Value | None = value
        while current is not None and (node := current.producer()) is not None:
            if node.op_type in ("MatMul", "Gemm") and node.domain == "":
                yield node
                break
            if not (passes_through(node) or is_elementwise(node)):
                break
            computed = [operand for operand in operands(node) if not is_constant(operand)]
            current = computed[0] if computed and (passes_through(node) or len(computed) == 1) else None
