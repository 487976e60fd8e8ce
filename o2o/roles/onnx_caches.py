"""KV caches of a decoder in ONNX, by the operators that append rows to them or write rows into them.

`Concat` appends rows to a cache that grows: torch.onnx and Optimum export these. `TensorScatter` writes rows
into a cache of fixed capacity. `Attention` and `GroupQueryAttention` do one of both themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from o2o.contract import Role
from o2o.model import attribute, dims_of
from o2o.operators.traits import is_elementwise, traits_of

_FUSED = {
    ("", "Attention"): ((4, 1, "BNTH"), (5, 2, "BNTH")),
    ("com.microsoft", "GroupQueryAttention"): ((3, 1, "BNTH"), (4, 2, "BNTH")),
    ("com.microsoft", "MultiHeadAttention"): ((6, 1, "BNTH"), (7, 2, "BNTH")),
}
"""By operator: operand, result and layout of the key cache, and of the value cache."""
_LAYOUTS = {1: "BTNH", 2: "BNTH", 3: "BNHT"}
"""By the axis of tokens. Heads are before the head dimension, as in all layouts in use."""
_WRITES = ("Concat", "TensorScatter")


def cache_roles(graph: ir.Graph) -> dict[ir.Value, Role]:
    """Find the caches among the inputs of a graph, and the outputs that return them.

    Args:
        graph: The graph.

    Returns:
        Their roles. Layers are numbered in the order of the operators.
    """
    roles: dict[ir.Value, Role] = {}
    layers = {"key": 0, "value": 0}
    for node in graph:
        for past, present, is_key, layout in _caches(node):
            if not past.is_graph_input() or past in roles:
                continue
            letter = "key" if is_key else "value"
            role = Role("key_cache" if is_key else "value_cache", layers[letter], layout)  # type: ignore[arg-type]
            layers[letter] += 1
            roles[past] = role
            if present.is_graph_output():
                roles[present] = role.output_role
    return roles


def _caches(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value, bool, str | None]]:
    """The caches of a node: before it, after it, whether it holds keys, and its layout."""
    for is_key, (operand, result, layout) in zip(
        (True, False), _FUSED.get((node.domain, node.op_type), ()), strict=False
    ):
        if operand < len(node.inputs) and result < len(node.outputs) and node.inputs[operand] is not None:
            yield node.inputs[operand], node.outputs[result], is_key, layout  # type: ignore[misc]
    past = node.inputs[0] if node.inputs else None
    if node.domain == "" and node.op_type in _WRITES and past is not None and len(dims_of(past) or ()) == 4:
        yield past, node.outputs[0], _are_keys(node.outputs[0]), written_layout(past)


def written_layout(cache: ir.Value) -> str | None:
    """Return the layout of a cache: T is the only symbolic axis, or the axis that an operator writes.

    Args:
        cache: An input with four axes.

    Returns:
        A permutation of BNTH; None if nothing shows it.
    """
    symbolic = [axis for axis, dim in enumerate(dims_of(cache) or ()) if axis and isinstance(dim, str)]
    if len(symbolic) == 1:
        return _LAYOUTS[symbolic[0]]
    for node, operand in cache.uses():
        for fused, _, layout in _FUSED.get((node.domain, node.op_type), ()):
            if fused == operand:
                return layout
        if node.domain == "" and node.op_type in _WRITES and operand == 0:
            axis = attribute(node, "axis", -2 if node.op_type == "TensorScatter" else None)
            if axis is not None:
                return _LAYOUTS.get(axis % 4)
    return None


def _are_keys(rows: ir.Value) -> bool:
    """Whether a Softmax follows the first product of some rows: that of queries and keys."""
    product = _product(rows)
    pending = [*product.outputs] if product is not None else []
    while pending:
        value = pending.pop()
        for node, _ in value.uses():
            if node.op_type == "Softmax":
                return True
            if is_elementwise(node) or traits_of(node).movement == "reshape":
                pending += node.outputs
    return False


def _product(rows: ir.Value) -> ir.Node | None:
    """The product that some rows go into, through layout operators."""
    pending, seen = [rows], {rows}
    while pending:
        for node, _ in pending.pop().uses():
            if node.op_type in ("MatMul", "Einsum", "Gemm"):
                return node
            if traits_of(node).movement is not None or is_elementwise(node):
                pending += [value for value in node.outputs if value not in seen]
                seen |= set(node.outputs)
    return None
