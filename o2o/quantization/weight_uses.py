"""The uses of a model's matrices: as weights, as the LM head, as the embedding table, or otherwise."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import onnx_ir as ir

from o2o.formats.tensors import is_constant, is_quantized, storage_key
from o2o.model import DOMAIN, Model, attribute, is_dynamic, shape_of
from o2o.operators.traits import PASS_THROUGH_OPS, lookup_operands, traits_of
from o2o.quantization.matrix import FLOATS, INTEGERS, Matrix, Part, Use, is_tokens, logits_of
from o2o.quantization.onnx_weight_uses import onnx_uses
from o2o.rewriting.matchers import producer_of

LM_HEAD_SUFFIX = "_head"  # suffix of the name of an LM head that was untied from the embedding


def matrices(model: Model) -> list[Matrix]:
    """Find the weight matrices and embedding tables of a model.

    Args:
        model: The model.

    Returns:
        The matrices in the order of the graphs. Values that share their bytes are one matrix.
    """
    by_storage: dict[Hashable, Matrix] = {}
    find = onnx_uses if model.format == "onnx" else _all_uses
    for graph, value, uses in find(model):
        assert value.const_value is not None
        matrix = by_storage.setdefault(storage_key(value.const_value), Matrix())
        matrix.values.append((graph, value))
        matrix.uses += uses
    return [matrix for matrix in by_storage.values() if matrix.parts]


def _all_uses(model: Model) -> Iterator[tuple[ir.Graph, ir.Value, list[Use]]]:
    """Each floating-point constant, its graph and its uses."""
    for graph in model.graphs:
        lm_heads = set(_lm_heads(model, graph))
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in FLOATS and value.dtype in FLOATS:
                yield graph, value, list(_uses(model, graph, value, lm_heads))


def _uses(
    model: Model, graph: ir.Graph, value: ir.Value, lm_heads: set[ir.Node], widened: ir.Node | None = None
) -> Iterator[Use]:
    for node, operand in value.uses():
        widens = (node.domain, node.op_type) == (DOMAIN, "DEQUANTIZE")
        if widened is None and widens and not node.outputs[0].is_graph_output():
            yield from _uses(model, graph, node.outputs[0], lm_heads, node)
            continue
        reason = _unfit(model, graph, node, operand, value)
        part: Part | None = None
        if not reason:
            part = (
                "embedding" if traits_of(node).table is not None else "head" if node in lm_heads else "matrix"
            )
        yield Use(graph, node, operand, part, reason, widened)


def _unfit(model: Model, graph: ir.Graph, node: ir.Node, operand: int, value: ir.Value) -> str:
    """Why `value` cannot be quantized for `node`; "" if it can."""
    if operand not in traits_of(node).weights:
        return f"{node.op_type} takes no quantized operand here"
    if not is_constant(value) and value.producer() is None:
        return "it is an input"
    if len(shape_of(value)) != 2:
        return "it is not a matrix (reshape.fc_weight.py reshapes it)"
    if value.dtype != ir.DataType.FLOAT or node.outputs[0].dtype != ir.DataType.FLOAT:
        return f"{node.op_type} computes in {value.dtype}"
    if "sparsity" in value.meta.get("fields", {}):
        return "it is sparse"
    if node.op_type == "FULLY_CONNECTED":
        x = node.inputs[0]
        if x is None or x.dtype != ir.DataType.FLOAT or is_quantized(x):
            return "the other operand is not float32"
        if attribute(node, "weightsFormat", 0):
            return "it has a weights format of its own"
    if node.op_type == "GATHER" and (attribute(node, "axis", 0) or attribute(node, "batchDims", 0)):
        return "GATHER does not look up rows"
    if (lookup := lookup_operands(node)) is not None:
        _, ids = lookup
        if ids.dtype not in INTEGERS or is_dynamic(ids):
            return "its rows are not looked up by integers of a fixed shape"
        if not _are_tokens(model, graph, ids):
            return "its rows are not looked up by token ids"
    return ""


def _are_tokens(model: Model, graph: ir.Graph, ids: ir.Value) -> bool:
    while (node := producer_of(ids, *PASS_THROUGH_OPS)) is not None and node.inputs[0] is not None:
        ids = node.inputs[0]
    return is_tokens(model, graph, ids)


def _lm_heads(model: Model, graph: ir.Graph) -> Iterator[ir.Node]:
    """The FULLY_CONNECTED nodes of `graph` that compute logits."""
    for value in logits_of(model, graph):
        node = value.producer()
        while node is not None and (moved := producer_of(node.outputs[0], *PASS_THROUGH_OPS)) is not None:
            node = moved.inputs[0].producer() if moved.inputs[0] is not None else None
        if node is not None and node.op_type == "FULLY_CONNECTED":
            yield node
