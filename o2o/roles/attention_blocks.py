"""Attention blocks: where a graph multiplies scores with values, and what keys and values come from.

    keys   -> BATCH_MATMUL with queries -> mask -> SOFTMAX -> BATCH_MATMUL with values -> ...
    ATTENTION, o2o.attention and o2o.causal_attention: one operator

A block is recognized by data flow. It ends in a product of two computed matrices. One of them comes from a
SOFTMAX, or an EXP, of another such product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.tensors import is_constant
from o2o.model import attribute, shape_of
from o2o.operators.attention import CACHES, MASK, Attention, is_attention
from o2o.operators.core_attention import CoreAttention, is_core_attention
from o2o.operators.traits import LAYOUT_OPS, PASS_THROUGH_OPS, is_elementwise, traits_of
from o2o.roles.axis_labels import SAME_AXES, Labels, before
from o2o.roles.flow import Point, Step, graph_inputs, origin, producer, sources, steps

MATMULS = ("BATCH_MATMUL", "FULLY_CONNECTED")
_SOFTMAX = ("SOFTMAX", "EXP")
_SCORES = ("SOFTMAX", "SUM", "REDUCE_MAX", "CONCATENATION", "SLICE", "STRIDED_SLICE", "SPLIT")


@dataclass
class Trace:
    """The values that keys, or values, come from: up to caches, projections and tables.

    Attributes:
        labels: Each value, with the labels of its axes where they are known.
    """

    labels: dict[Point, Labels | None] = field(default_factory=dict)

    @property
    def inputs(self) -> list[ir.Value]:
        """The floating-point graph inputs of three axes or more: caches."""
        return [
            value
            for value in graph_inputs(self.labels)
            if len(shape_of(value)) >= 3 and value.dtype is not None and value.dtype not in _NO_CACHE
        ]


_NO_CACHE = (ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64)


@dataclass
class AttentionBlock:
    """One attention.

    Attributes:
        key, value: Where its keys and values come from.
        masks: Values that decide which keys a query sees, up to graph inputs.
        window: How many keys a query sees at most; 0 for all; None if a mask decides it.
    """

    key: Trace
    value: Trace
    masks: dict[Point, Step | None] = field(default_factory=dict)
    window: int | None = None


def attention_blocks(graph: ir.Graph) -> list[AttentionBlock]:
    """Find the attention blocks of a graph.

    Args:
        graph: A graph.

    Returns:
        The blocks in the order of execution.
    """
    return [block for step in steps(graph) if (block := _block(step)) is not None]


def _block(step: Step) -> AttentionBlock | None:
    node = step.node
    if is_attention(node):
        return _of_attention(step)
    if is_core_attention(node):
        axes: Labels = ("B", "N", "T", "H")
        masks = sources([step.operand(4)], _all)
        window = None
        if step.operand(4) is None:
            with contextlib.suppress(ModelError):  # damaged options
                window = CoreAttention.of(node).window
        return AttentionBlock(trace(step.operand(1), axes), trace(step.operand(2), axes), masks, window)
    return _of_products(step) if _is_product(node) else None


def _of_attention(step: Step) -> AttentionBlock:
    """The block of ATTENTION, whose caches may have either layout."""
    labels: Labels | None = None
    if step.operand(CACHES[0]) is not None:
        with contextlib.suppress(ModelError):  # both layouts fit the shape
            labels = tuple(Attention.of(step.node).layout)
    key, value = (trace(step.operand(index), labels) for index in CACHES)
    window = 0 if step.operand(MASK) is None else None
    return AttentionBlock(key, value, sources([step.operand(MASK)], _all), window)


def _of_products(step: Step) -> AttentionBlock | None:
    """The block whose second product, of weights and values, is `step`."""
    for index in (0, 1):
        weights = step.operand(index)
        region = sources([weights], _follow_scores)
        scores = [one for one in region.values() if one is not None and _is_product(one.node)]
        softmax = any(one is not None and one.node.op_type in _SOFTMAX for one in region.values())
        if softmax and scores:
            value = trace(step.operand(1 - index), _operand_labels(step.node, 1 - index, "T", "H"))
            key = Trace()
            for score in scores:
                key.labels |= _keys(score).labels
            masks = sources(_mask_operands(region), _all)
            return AttentionBlock(key, value, masks)
    return None


def _keys(score: Step) -> Trace:
    """Where the keys of a product of queries and keys come from: the operand with a cache, else the right."""
    candidates = [
        trace(score.operand(index), _operand_labels(score.node, index, "H", "T")) for index in (1, 0)
    ]
    return next((one for one in candidates if one.inputs), candidates[0])


def _mask_operands(region: dict[Point, Step | None]) -> Iterator[Point]:
    """Operands of the operators between both products that do not come from the first product."""
    inside = {point for point, step in region.items() if _reaches_product(point, region)}
    for point in region:
        if point not in inside:
            yield point


def _reaches_product(point: Point, region: dict[Point, Step | None]) -> bool:
    within = sources([point], lambda step: _follow_scores(step))
    return any(step is not None and _is_product(step.node) for step in within.values())


def _is_product(node: ir.Node) -> bool:
    """Whether `node` multiplies two computed matrices."""
    return node.op_type in MATMULS and all(
        value is not None and not is_constant(value) and not _is_weight(value) for value in node.inputs[:2]
    )


def _is_weight(value: ir.Value) -> bool:
    """Whether `value` is computed from constants alone, as a dequantized weight is."""
    node = value.producer()
    return node is not None and node.op_type in ("DEQUANTIZE", *LAYOUT_OPS) and is_weight_operand(node)


def is_weight_operand(node: ir.Node) -> bool:
    """Whether operand 0 of a node is a constant, or is computed from one.

    Args:
        node: Any node.

    Returns:
        True for a weight that is dequantized or transposed.
    """
    operand = node.inputs[0] if node.inputs else None
    return operand is not None and (is_constant(operand) or _is_weight(operand))


def _operand_labels(node: ir.Node, index: int, contracted: str, other: str) -> Labels:
    """The labels of an operand of a product: its contracted axis, its other axis, and heads."""
    value = node.inputs[index]
    assert value is not None
    if node.op_type == "FULLY_CONNECTED":
        last = contracted
    elif index == 0:
        last = other if attribute(node, "adjointLhs", False) else contracted
    else:
        last = contracted if attribute(node, "adjointRhs", False) else other
    matrix = (other if last == contracted else contracted, last)
    heads: Labels = tuple("N" if size != 1 else "B" for size in shape_of(value)[:-2])
    return (*heads, *matrix)


def _follow_scores(step: Step) -> Iterable[int]:
    """From attention weights back to the product of queries and keys."""
    node = step.node
    if is_elementwise(node) or node.op_type in (*_SCORES, *PASS_THROUGH_OPS, "DEQUANTIZE", "QUANTIZE"):
        return range(len(node.inputs)) if not traits_of(node).index else (0,)
    return ()


def _all(step: Step) -> Iterable[int]:
    """Back through all but products and the operators of attention."""
    return (
        () if step.node.op_type in MATMULS or step.node.op_type == "SOFTMAX" else range(len(step.node.inputs))
    )


def _follow_rows(step: Step) -> Iterable[int]:
    """From keys or values back to caches and to the projection of new rows."""
    node = step.node
    if node.op_type in ("SELECT", "SELECT_V2"):
        return (1, 2)
    if node.op_type == "DYNAMIC_UPDATE_SLICE":
        return (0, 1)
    if node.op_type in ("CONCATENATION", "PACK") or is_elementwise(node):
        return range(len(node.inputs))
    if node.op_type == "SPLIT":
        return (1,)
    if node.op_type in (*SAME_AXES, *PASS_THROUGH_OPS, "UNPACK", "GATHER_ND"):
        return (0,)
    return ()


def trace(start: Point | None, labels: Labels | None) -> Trace:
    """Follow keys or values back.

    Args:
        start: The keys or values; None gives an empty trace.
        labels: The labels of their axes; None if they are unknown.

    Returns:
        All values on the way.
    """
    result = Trace()
    if start is None:
        return result
    pending = [(origin(start), labels)]
    while pending:
        point, known = pending.pop()
        if point in result.labels and (known is None or result.labels[point] is not None):
            continue
        if is_constant(point.value):
            continue
        result.labels[point] = known
        step = producer(point)
        for index in _follow_rows(step) if step is not None else ():
            assert step is not None
            if (operand := step.operand(index)) is not None:
                own = before(step.node, index, known) if known is not None else None
                pending.append((operand, own))
    return result
