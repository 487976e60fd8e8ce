"""Traits of operators of Circle, TFLite and ONNX, in tables that every pass reads.

What an operator computes is in `reference`; operands of ATTENTION are in `attention`. What one runtime
supports (registered operators, versions, dtypes) is a property of that runtime, and stands in its lowering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from o2o.model import CUSTOM_DOMAIN, DOMAIN, attribute, inner_graphs, shape_of
from o2o.operators import attention, core_attention

Movement = Literal["reshape", "transpose", "broadcast", "subset"]


@dataclass(frozen=True)
class OpTraits:
    """What passes need to know about one operator. Operands are numbered from 0.

    Attributes:
        elementwise: Each element of the result depends on the operands' elements at its place alone, after
            broadcasting.
        movement: The result holds numbers of operand 0, unchanged. `reshape`: all, in row-major order.
            `transpose`: all, with permuted axes. `broadcast`: all, repeated. `subset`: some of them.
        table, index: A lookup's operands: the table, and the integers that choose its rows.
        weights: Operands that may be a quantized matrix.
        position: The operand that is a token position, int32 or int64.
        side_effects: It does more than compute its results, so it stays when no result is used.
    """

    elementwise: bool = False
    movement: Movement | None = None
    table: int | None = None
    index: int | None = None
    weights: tuple[int, ...] = ()
    position: int | None = None
    side_effects: bool = False


_UNKNOWN = OpTraits()
_BINARY = ("ADD", "SUB", "MUL", "DIV", "FLOOR_DIV", "FLOOR_MOD", "MAXIMUM", "MINIMUM", "POW")
_UNARY = ("NEG", "ABS", "SQRT", "RSQRT", "SQUARE", "EXP", "LOG", "SIN", "COS", "TANH", "LOGISTIC", "RELU")
_COMPARISONS = ("LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "EQUAL", "NOT_EQUAL")
_LOGIC = ("LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "SELECT", "SELECT_V2")
_OTHER = ("SQUARED_DIFFERENCE", "FLOOR", "CEIL", "CAST")

BUILTIN: dict[str, OpTraits] = {
    **dict.fromkeys((*_BINARY, *_UNARY, *_COMPARISONS, *_LOGIC, *_OTHER), OpTraits(elementwise=True)),
    **dict.fromkeys(("RESHAPE", "EXPAND_DIMS", "SQUEEZE"), OpTraits(movement="reshape")),
    "TRANSPOSE": OpTraits(movement="transpose"),
    "BROADCAST_TO": OpTraits(movement="broadcast"),
    **dict.fromkeys(("SLICE", "STRIDED_SLICE"), OpTraits(movement="subset")),
    "GATHER": OpTraits(movement="subset", table=0, index=1, weights=(0,)),
    "EMBEDDING_LOOKUP": OpTraits(table=1, index=0, weights=(1,)),
    "FULLY_CONNECTED": OpTraits(weights=(1,)),
    "ATTENTION": OpTraits(weights=attention.WEIGHTS, position=attention.POSITION),
    **dict.fromkeys(("ASSIGN_VARIABLE", "CALL_ONCE", "HASHTABLE_IMPORT"), OpTraits(side_effects=True)),
}
CUSTOM: dict[str, OpTraits] = dict.fromkeys(core_attention.NAMES, OpTraits(position=core_attention.POSITION))

_ONNX_UNARY = (
    "Neg",
    "Abs",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Log",
    "Sin",
    "Cos",
    "Tanh",
    "Sigmoid",
    "Relu",
    "Erf",
)
_ONNX_BINARY = ("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Max", "Min", "And", "Or", "Xor", "Not", "Where")
_ONNX_COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
_ONNX_OTHER = ("Floor", "Ceil", "Cast", "CastLike", "Gelu", "Softplus", "Clip")

ONNX: dict[str, OpTraits] = {
    **dict.fromkeys(
        (*_ONNX_UNARY, *_ONNX_BINARY, *_ONNX_COMPARISONS, *_ONNX_OTHER), OpTraits(elementwise=True)
    ),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"), OpTraits(movement="reshape")),
    "Transpose": OpTraits(movement="transpose"),
    **dict.fromkeys(("Expand", "Tile"), OpTraits(movement="broadcast")),
    "Slice": OpTraits(movement="subset"),
    "Gather": OpTraits(movement="subset", table=0, index=1),
}
"""Operators of ONNX's own domain."""

RESHAPE_OPS = tuple(name for name, traits in BUILTIN.items() if traits.movement == "reshape")
LAYOUT_OPS = tuple(
    n for n, traits in BUILTIN.items() if traits.movement in ("reshape", "transpose", "broadcast")
)
PASS_THROUGH_OPS = (*(name for name, traits in BUILTIN.items() if traits.movement is not None), "CAST")


def traits_of(node: ir.Node) -> OpTraits:
    """Return the traits of the operator of `node`; all at their defaults for an unknown one.

    Args:
        node: Any node.

    Returns:
        Its traits.
    """
    return _BY_DOMAIN.get(node.domain, {}).get(node.op_type, _UNKNOWN)


_BY_DOMAIN = {DOMAIN: BUILTIN, CUSTOM_DOMAIN: CUSTOM, "": ONNX}


def is_cast(node: ir.Node) -> bool:
    """Whether `node` converts numbers to another dtype.

    Args:
        node: Any node.

    Returns:
        True for CAST, and for ONNX's Cast.
    """
    return (node.domain, node.op_type) in ((DOMAIN, "CAST"), ("", "Cast"))


def passes_through(node: ir.Node) -> bool:
    """Whether the result of `node` holds numbers of operand 0, unchanged but for the dtype.

    Args:
        node: Any node.

    Returns:
        True for layout operators, lookups, slices and casts.
    """
    return traits_of(node).movement is not None or is_cast(node)


def is_elementwise(node: ir.Node) -> bool:
    """Whether `node` computes each element from the operands' elements at its place, after broadcasting.

    SELECT does, except with a vector of conditions: that one chooses along the first axis.

    Args:
        node: Any node.

    Returns:
        True if it is elementwise.
    """
    if node.op_type == "SELECT" and node.domain == DOMAIN:
        condition, x = (shape_of(value) if value is not None else () for value in node.inputs[:2])
        return len(condition) != 1 or len(x) <= 1
    return traits_of(node).elementwise


def lookup_operands(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Return (table, indices) of a lookup, GATHER or EMBEDDING_LOOKUP, or None for another operator.

    Args:
        node: Any node.

    Returns:
        The two operands, or None.
    """
    traits = traits_of(node)
    if traits.table is None or traits.index is None:
        return None
    table, index = node.inputs[traits.table], node.inputs[traits.index]
    return (table, index) if table is not None and index is not None else None


def has_side_effects(node: ir.Node, known: dict[int, bool] | None = None) -> bool:
    """Whether `node` does more than compute its outputs. A node without outputs does.

    Args:
        node: Any node.
        known: Graphs that nodes run, by `id`, and whether they have side effects; for calls for many nodes
            of an unchanged model. Graphs are added.

    Returns:
        True also if a graph that it runs has side effects.
    """
    known = {} if known is None else known
    if (
        traits_of(node).side_effects
        or attention.writes_cache(node)
        or not any(value.name != "" for value in node.outputs)
    ):
        return True
    if attribute(node, "hasSideEffect", False):
        return True
    for graph in inner_graphs(node):
        if id(graph) not in known:
            known[id(graph)] = False  # while it is looked at: a graph may run itself
            known[id(graph)] = any(has_side_effects(inner, known) for inner in graph)
        if known[id(graph)]:
            return True
    return False
