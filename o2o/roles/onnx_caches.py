"""KV caches of a decoder in ONNX, by the operators between an input and the output that returns it.

`Concat` appends rows to a cache that grows: torch.onnx and Optimum export these. `ScatterND` and
`TensorScatter` write rows into a cache of fixed capacity. `Attention` and `GroupQueryAttention` do one of
both themselves. Other operators on the way only move numbers. All may be in the branches of an `If`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import onnx_ir as ir

from o2o.contract import Role
from o2o.model import attribute, dims_of
from o2o.operators.traits import is_elementwise
from o2o.roles.onnx_flow import ForwardFlow

_FUSED = {
    ("", "Attention"): ((4, 1, "BNTH"), (5, 2, "BNTH")),
    ("com.microsoft", "GroupQueryAttention"): ((3, 1, "BNTH"), (4, 2, "BNTH")),
    ("com.microsoft", "MultiHeadAttention"): ((6, 1, "BNTH"), (7, 2, "BNTH")),
    ("com.microsoft", "Attention"): ((4, 1, None),),
}
"""By operator: operand, result and layout of the key cache, and of the value cache; or of one for both."""
_READS = {("", "Attention"): (1, 2), ("com.microsoft", "MultiHeadAttention"): (1, 2)}
"""By operator: the operands with keys and with values."""
_LAYOUTS = {1: "BTNH", 2: "BNTH", 3: "BNHT"}
"""By the axis of tokens. Heads are before the head dimension, as in all layouts in use."""
_WRITES = ("Concat", "TensorScatter", "ScatterND", "ScatterElements")
_IN_PLACE = (*_WRITES[1:], "GroupQueryAttention")
_LAYOUT_OPS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Transpose", "Cast")
_MOVES = (*_LAYOUT_OPS, "Slice", "Split", "Gather", "Pad")
_CUTS = ("Slice", "Split", "Gather", "Where", "Pad")


class CachePair(NamedTuple):
    """A cache as an input, and as the output that returns it.

    Attributes:
        past: The input.
        present: The output.
        in_place: Whether an operator writes rows into the input, which nothing else reads, so that both may
            be one buffer.
        is_cut: Whether rows may be dropped after new ones were appended, as of a sliding window.
    """

    past: ir.Value
    present: ir.Value
    in_place: bool
    is_cut: bool


def cache_pairs(graph: ir.Graph) -> list[CachePair]:
    """Find the inputs of a graph that an output returns, with rows appended or written.

    Args:
        graph: The graph.

    Returns:
        The pairs, in the order of the operators that write.
    """
    flow = ForwardFlow(graph)
    order = {node: number for number, node in enumerate(graph.all_nodes())}
    places: dict[ir.Value, int] = {}
    pairs: list[CachePair] = []
    outputs = set(graph.outputs)
    for past in graph.inputs:
        if past.dtype is None or not past.dtype.is_floating_point() or len(dims_of(past) or ()) < 3:
            continue
        reached = [value for value in flow.reached(past, _moved) if value in outputs]
        same = [value for value in reached if _is_like(past, value)]
        if not same or same[0] in (pair.present for pair in pairs):
            continue
        writes = [node for node, _ in flow.uses(past, _moved) if _is_write(node)]
        places[past] = min((order[node] for node in writes), default=len(order))
        pairs.append(CachePair(past, same[0], _is_in_place(past, same[0]), _is_cut(flow, writes, same[0])))
    return sorted(pairs, key=lambda pair: places[pair.past])


def cache_roles(graph: ir.Graph) -> dict[ir.Value, Role]:
    """Find the caches of keys and of values among the inputs of a graph, and the outputs that return them.

    Args:
        graph: The graph.

    Returns:
        Their roles. Layers are numbered in the order of the operators.
    """
    flow = ForwardFlow(graph)
    roles: dict[ir.Value, Role] = {}
    layers = {"key_cache": 0, "value_cache": 0}
    for past, present, _, _ in cache_pairs(graph):
        is_key = _is_key(flow, past) if len(dims_of(past) or ()) == 4 else None
        if is_key is None:
            continue
        kind = "key_cache" if is_key else "value_cache"
        role = Role(kind, layers[kind], written_layout(past))  # type: ignore[arg-type]
        layers[kind] += 1
        roles[past], roles[present] = role, role.output_role
    return roles


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
        if node.domain == "" and node.op_type in ("Concat", "TensorScatter") and operand == 0:
            axis = attribute(node, "axis", -2 if node.op_type == "TensorScatter" else None)
            if axis is not None:
                return _LAYOUTS.get(axis % 4)
    return None


def _moved(node: ir.Node, operand: int) -> Iterable[int]:
    """Results that hold the numbers of an operand in other places: rows of a cache stay rows."""
    for fused, result, _ in _FUSED.get((node.domain, node.op_type), ()):
        if fused == operand and result < len(node.outputs):
            return (result,)
    if node.domain != "":
        return ()
    if node.op_type in _MOVES or node.op_type in _WRITES[1:]:
        return range(len(node.outputs)) if operand == 0 else ()
    if node.op_type == "Where":
        return (0,) if operand else ()
    return (0,) if node.op_type == "Concat" else ()


def _is_write(node: ir.Node) -> bool:
    return node.op_type in _WRITES or (node.domain, node.op_type) in _FUSED


def _is_like(past: ir.Value, present: ir.Value) -> bool:
    """Whether two tensors may be one cache: the same dtype and rank, and other sizes of one axis at most."""
    before, after = dims_of(past) or (), dims_of(present)
    if after is None:
        return past.dtype == present.dtype
    fixed = [
        (one, other) for one, other in zip(before, after, strict=False) if {type(one), type(other)} == {int}
    ]
    return (
        past.dtype == present.dtype
        and len(before) == len(after)
        and sum(one != other for one, other in fixed) <= 1
    )


def _is_in_place(past: ir.Value, present: ir.Value) -> bool:
    uses = [*past.uses()]
    if len(uses) != 1 or past.is_graph_output():
        return False
    node, operand = uses[0]
    results = [node.outputs[index] for index in _moved(node, operand)]
    return node.op_type in _IN_PLACE and present in results


def _is_cut(flow: ForwardFlow, writes: Iterable[ir.Node], present: ir.Value) -> bool:
    """Whether a Slice, or an operator like it, follows an operator that appends rows."""
    for node in writes:
        for cut, _ in (use for value in node.outputs for use in flow.uses(value, _moved)):
            if cut.op_type in _CUTS and present in flow.reached(cut.outputs[0], _moved):
                return True
    return False


def _is_key(flow: ForwardFlow, past: ir.Value) -> bool | None:
    """Whether a cache holds keys: a Softmax follows the product with queries. None if nothing multiplies."""
    result: bool | None = None
    for node, operand in flow.uses(past, lambda node, operand: [*_moved(node, operand), *_repeated(node)]):
        fused = [place for place, _, _ in _FUSED.get((node.domain, node.op_type), ())]
        places = fused if len(fused) == 2 else []
        reads = _READS.get((node.domain, node.op_type), ())
        if operand in places or operand in reads:
            return operand in (*places[:1], *reads[:1])
        if node.op_type in ("MatMul", "Einsum", "Gemm"):
            if any(one.op_type == "Softmax" for one in _after_product(flow, node)):
                return True
            result = False
    return result


def _repeated(node: ir.Node) -> Iterable[int]:
    """Results of operators that repeat the heads of a cache, or scale it."""
    return (0,) if node.op_type in ("Expand", "Tile", "Mul") else ()


def _after_product(flow: ForwardFlow, product: ir.Node) -> Iterator[ir.Node]:
    def follow(node: ir.Node, operand: int) -> Iterable[int]:
        return (0,) if is_elementwise(node) or node.op_type in _LAYOUT_OPS else ()

    for node, _ in flow.uses(product.outputs[0], follow):
        yield node
