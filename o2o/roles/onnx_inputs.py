"""Roles of the inputs of a decoder in ONNX that are no caches, by what they reach in the graph.

input_ids            Gather rows of a table               tokens
position_ids         Cos, Sin, or a table of positions    position
attention_mask       Softmax, or the mask of an attention mask
use_cache_branch     condition of an If                   use_cache
seqlens_k            operand of GroupQueryAttention       last_position
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from o2o.contract import Kind, Role
from o2o.formats.tensors import is_constant
from o2o.model import dims_of
from o2o.roles.onnx_flow import ForwardFlow

_OPERANDS: dict[tuple[str, str], dict[int, Kind]] = {
    ("com.microsoft", "GroupQueryAttention"): {5: "last_position", 6: "length", 9: "position"},
    ("com.microsoft", "MultiHeadAttention"): {4: "mask", 5: "mask"},
    ("com.microsoft", "RotaryEmbedding"): {1: "position"},
    ("com.microsoft", "Attention"): {3: "mask"},
    ("", "Attention"): {3: "mask", 6: "length"},
    ("", "RotaryEmbedding"): {3: "position"},
    ("", "TensorScatter"): {2: "position"},
    ("", "If"): {0: "use_cache"},
}
"""By operator: operands that only one kind of input reaches."""
_TABLES = {
    ("", "Gather"): 0,
    ("", "RotaryEmbedding"): 1,
    ("com.microsoft", "RotaryEmbedding"): 2,
    ("com.microsoft", "GroupQueryAttention"): 7,
}
"""By operator: the operand that may be a table with a row for each position."""
_STOPS = ("Softmax", "Conv", "Shape", "Size", "ConstantOfShape", "Sin", "Cos")
_WRITES = ("ScatterND", "ScatterElements")
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


@dataclass
class _Reached:
    """What an input reaches: kinds that operands say, and the rows of the largest table that it indexes.

    `is_summed`: it is counted, as a mask of ones is. `reaches_scores`: it is added to scores, or hides some.
    """

    kinds: set[Kind] = field(default_factory=set)
    rows: int = 0
    is_summed: bool = False
    reaches_scores: bool = False


def input_roles(graph: ir.Graph, inputs: Iterable[ir.Value], has_tokens: bool) -> dict[ir.Value, Role]:
    """Find roles of inputs that are no caches.

    Args:
        graph: The graph.
        inputs: The inputs whose roles are not known.
        has_tokens: Whether the token ids are known.

    Returns:
        The roles of those that the data flow makes clear. Token ids index a table with a row for each logit,
        else the largest table.
    """
    flow = ForwardFlow(graph)
    reached = {value: _reached(flow, value) for value in inputs}
    lookups = [value for value, one in reached.items() if one.rows and not one.is_summed]
    widths = {(dims_of(output) or (None,))[-1] for output in graph.outputs}

    def likeness(value: ir.Value) -> tuple[bool, bool, int]:
        one = reached[value]
        return one.rows in widths, not one.reaches_scores, one.rows

    tokens = None if has_tokens else max(lookups, key=likeness, default=None)
    kinds: dict[ir.Value, Kind | None] = {
        value: "tokens" if value is tokens else _kind(value, one) for value, one in reached.items()
    }
    return {value: Role(kind) for value, kind in kinds.items() if kind is not None}


def position_limit(graph: ir.Graph, tokens: ir.Value) -> int | None:
    """Return how many positions the tables of a graph have rows for.

    Args:
        graph: The graph.
        tokens: The token ids.

    Returns:
        The smallest number of rows of a table of positions, or of cosines; None without such a table.
    """
    from_tokens = set(ForwardFlow(graph).reached(tokens, _follow))
    limits = []
    for node in graph.all_nodes():
        place = _TABLES.get((node.domain, node.op_type))
        table = node.inputs[place] if place is not None and place < len(node.inputs) else None
        if table is None or not _is_table(table) or len(dims_of(table) or ()) != 2:
            continue
        if node.op_type != "Gather" or (node.inputs[1] not in from_tokens and not _is_fixed(node.inputs[1])):
            limits.append(_rows_of(table))
    return min(limits, default=None)


def _is_fixed(value: ir.Value | None) -> bool:
    return value is None or is_constant(value)


def _kind(value: ir.Value, reached: _Reached) -> Kind | None:
    rank = len(dims_of(value) or ())
    if value.dtype == ir.DataType.BOOL and rank <= 1:
        return "use_cache" if "use_cache" in reached.kinds else None
    if value.dtype in _INTEGERS:
        for kind in ("last_position", "length"):
            if kind in reached.kinds and rank <= 1:
                return kind
        if ("position" in reached.kinds or reached.rows) and not (rank == 2 and reached.is_summed):
            return "position"
    is_mask = "mask" in reached.kinds or reached.reaches_scores or reached.is_summed
    return "mask" if rank >= 2 and is_mask else None


def _reached(flow: ForwardFlow, value: ir.Value) -> _Reached:
    result = _Reached()
    for node, operand in flow.uses(value, _follow):
        kind = _OPERANDS.get((node.domain, node.op_type), {}).get(operand)
        if kind is not None:
            result.kinds.add(kind)
        elif node.op_type in ("Sin", "Cos") or (node.op_type in _WRITES and operand == 1):
            result.kinds.add("position")
        elif node.op_type in ("CumSum", "ReduceSum"):
            result.is_summed = True
        elif node.op_type == "Softmax":
            result.reaches_scores = True
        elif node.op_type in ("Gather", "GatherBlockQuantized") and operand == 1:
            table = node.inputs[0]
            if table is not None and _is_table(table):
                result.rows = max(result.rows, _rows_of(table))
    return result


def _rows_of(table: ir.Value) -> int:
    rows = (dims_of(table) or (0,))[0]
    return rows if isinstance(rows, int) else 1


def _is_table(value: ir.Value) -> bool:
    """Whether a value is a matrix of numbers, also one that is dequantized, transposed or cast."""
    node = value.producer()
    while node is not None and not is_constant(value) and node.inputs and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return (
        is_constant(value)
        and len(dims_of(value) or ()) >= 2
        and value.dtype not in (*_INTEGERS, ir.DataType.BOOL)
    )


def _follow(node: ir.Node, operand: int) -> Iterable[int]:
    """On to what is computed from an integer or a mask, but not past lookups of tables."""
    if node.op_type in _STOPS or node.op_type == "If" or node.domain not in ("", "ai.onnx"):
        return ()
    if node.op_type in ("Gather", "GatherND", "ScatterND", "ScatterElements") and operand:
        table = node.inputs[0]
        return () if table is None or _is_table(table) else (0,)
    if node.op_type in ("Slice", "Range", "Trilu", "TopK", "Reshape", "Expand", "Tile", "Pad") and operand:
        return ()
    return range(len(node.outputs))
