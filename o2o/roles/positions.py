"""Integer inputs: which index the embedding, and which are positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from o2o.formats.tensors import is_constant
from o2o.model import shape_of
from o2o.operators.traits import PASS_THROUGH_OPS, lookup_operands, traits_of
from o2o.roles.attention_blocks import is_weight_operand
from o2o.roles.flow import Step, all_operands, graph_inputs, sources, steps

COMPARISONS = ("LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "EQUAL", "NOT_EQUAL")
_INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


@dataclass
class IntegerInputs:
    """Integer graph inputs by what reads them.

    Attributes:
        tables: For each input that indexes constant tables: the number of rows of the largest.
        positions: Inputs that are a position: of a write into a cache, of a rotation, in a comparison with
            other positions, of an attention.
    """

    tables: dict[ir.Value, int] = field(default_factory=dict)
    positions: list[ir.Value] = field(default_factory=list)

    @property
    def tokens(self) -> list[ir.Value]:
        """The inputs that index a table and are no position: token ids, the largest table first."""
        candidates = [value for value in self.tables if value not in self.positions]
        return sorted(candidates, key=lambda value: -self.tables[value])


def integer_inputs(graph: ir.Graph) -> IntegerInputs:
    """Classify the integer inputs of a graph by data flow.

    Args:
        graph: A graph.

    Returns:
        Which inputs index tables, and which are positions.
    """
    result = IntegerInputs()
    for step in steps(graph):
        lookup = lookup_operands(step.node)
        if lookup is not None and _is_table(lookup[0]) and (index := traits_of(step.node).index) is not None:
            for value in _inputs(step, index, _follow_integers):
                rows = shape_of(lookup[0])[0]
                result.tables[value] = max(rows, result.tables.get(value, 0))
        for index in _position_operands(step):
            follow = all_operands if step.node.op_type in ("SIN", "COS") else _follow_integers
            for value in _inputs(step, index, follow):
                if value not in result.positions:
                    result.positions.append(value)
    return result


def _is_table(value: ir.Value) -> bool:
    """Whether `value` is a constant matrix of numbers, also one that is dequantized."""
    node = value.producer()
    constant = is_constant(value) or (
        node is not None and node.op_type in ("DEQUANTIZE", *PASS_THROUGH_OPS) and is_weight_operand(node)
    )
    return constant and len(shape_of(value)) >= 2 and value.dtype not in _INTEGERS


def _inputs(step: Step, index: int, follow: object) -> list[ir.Value]:
    reached = sources([step.operand(index)], follow)  # type: ignore[arg-type]
    return [value for value in graph_inputs(reached) if value.dtype in _INTEGERS]


def _follow_integers(step: Step) -> Iterable[int]:
    """Back from an integer to the integers that it is computed from; masks and floats are not followed."""
    node = step.node
    if node.op_type in ("SELECT", "SELECT_V2"):
        return (1, 2)
    if (table := traits_of(node).table) is not None:
        return (table,)
    if node.outputs[0].dtype in (*_INTEGERS, ir.DataType.FLOAT):
        return range(len(node.inputs))
    return ()


def _position_operands(step: Step) -> Iterator[int]:
    node = step.node
    if (position := traits_of(node).position) is not None:
        yield position
    elif node.op_type == "DYNAMIC_UPDATE_SLICE":
        yield 2
    elif node.op_type in ("SIN", "COS"):
        yield 0
    elif node.op_type in COMPARISONS:
        for index, other in ((0, 1), (1, 0)):
            operand = node.inputs[other]
            # A comparison with one number guards a lookup (ids below 0), or finds padding.
            if operand is not None and not (is_constant(operand) and max(shape_of(operand), default=1) == 1):
                yield index
