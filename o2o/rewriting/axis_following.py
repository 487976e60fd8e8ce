"""One axis through a graph: every value that has its n elements as an axis, or as a factor of one.

    ids [1,n] -- GATHER [1,n,64] -- RESHAPE [1,n,4,16] -- TRANSPOSE [1,4,n,16] -- RESHAPE [1,4*n,16]
          (1, 1)           (1, 1)            (1, 1)                 (2, 1)               (1, 4)

The axis is followed in both directions: to users, and back to masks, tables and constants. Each operator has
a rule: which axes of its operands and results belong together. An operator that is not known, or that mixes
the n elements, has none, and the following fails there. Two kinds of operators mix them and are recorded: a
softmax over n scores, and a product that sums over n. A mask can hide elements from both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import onnx_ir as ir

from o2o.formats.tensors import is_constant, is_quantized
from o2o.model import CUSTOM_DOMAIN, DOMAIN, attribute, is_dynamic, shape_of
from o2o.operators import attention, core_attention
from o2o.operators.traits import BUILTIN, is_elementwise
from o2o.rewriting.matchers import constant_ints, fail


@dataclass(frozen=True, order=True)
class Factor:
    """A factor of the size of one axis, which is `outer` * n * (a rest).

    Attributes:
        axis: The axis.
        outer: The product of the factors before it in the same axis, outermost first.
    """

    axis: int
    outer: int = 1


@dataclass
class Followed:
    """Where the axis is.

    Attributes:
        size: n.
        values: The factors of values that are computed, or are inputs.
        constants: The factors of constant operands, by node and number of the operand. A constant may have
            other users, which use it for something else.
        reductions: Nodes that mix the n elements: SOFTMAX, BATCH_MATMUL, attention.
        writes: DYNAMIC_UPDATE_SLICE nodes that write a block of n rows, and the axis of these rows.
    """

    size: int
    values: dict[ir.Value, set[Factor]] = field(default_factory=dict)
    constants: dict[tuple[ir.Node, int], set[Factor]] = field(default_factory=dict)
    reductions: dict[ir.Node, None] = field(default_factory=dict)
    writes: dict[tuple[ir.Node, int], None] = field(default_factory=dict)

    def resized(self, shape: Sequence[int], factors: Iterable[Factor], size: int) -> tuple[int, ...]:
        """Return a shape with another number of elements in place of n.

        Args:
            shape: The shape of a value.
            factors: Its factors.
            size: The number that replaces n.

        Returns:
            The shape.
        """
        sizes = list(shape)
        for factor in factors:
            sizes[factor.axis] = sizes[factor.axis] // self.size * size
        return tuple(sizes)


def follow(
    seeds: Iterable[tuple[ir.Value, Factor]], size: int, least: int | None = None, back: bool = True
) -> Followed:
    """Follow an axis from some values to all that have it.

    Args:
        seeds: Values of one graph, and where the axis is in them.
        size: n, 2 or more.
        least: How many of the first elements are sure to exist if n changes; None for n. Slices of more are
            refused.
        back: Follow the axis from results to operands too.

    Returns:
        Where the axis is.

    Raises:
        MatchFailure: An operator mixes the elements of the axis, or is not known.
    """
    followed = Followed(size)
    pending: list[tuple[ir.Value, Factor]] = []

    def add(value: ir.Value, factor: Factor) -> None:
        factors = followed.values.setdefault(value, set())
        if factor not in factors:
            if is_dynamic(value):
                fail("it has no fixed shape", value)
            if shape_of(value)[factor.axis] % (factor.outer * size):
                fail("an axis is not divided into equal parts", value)
            factors.add(factor)
            pending.append((value, factor))

    for value, factor in seeds:
        add(value, factor)
    while pending:
        value, factor = pending.pop()
        producer = value.producer()
        nodes = [*([producer] if producer is not None else []), *(use.node for use in value.uses())]
        for node in dict.fromkeys(nodes):
            operator = _Operator(node, followed, size if least is None else least)
            for slot, other in enumerate(operator.values):
                if other is not value or (slot >= operator.operands and not back):
                    continue
                for tied, at in operator.tied(slot, factor):
                    operand = operator.values[tied]
                    assert operand is not None
                    if is_constant(operand):
                        followed.constants.setdefault((node, tied), set()).add(at)
                    else:
                        add(operand, at)
    return followed


class _Operator:
    """A node with numbered operands and results: each number is a `slot`. Operands come first."""

    def __init__(self, node: ir.Node, followed: Followed, least: int) -> None:
        self.node, self.followed, self.size, self.least = node, followed, followed.size, least
        self.values: list[ir.Value | None] = [*node.inputs, *node.outputs]
        self.operands = len(node.inputs)

    def shape(self, slot: int) -> tuple[int, ...]:
        """Return the shape of an operand or result; empty for one that is absent."""
        value = self.values[slot]
        return shape_of(value) if value is not None else ()

    def ints(self, slot: int) -> list[int]:
        """Return the integers of a constant operand. MatchFailure for another one."""
        numbers = constant_ints(self.values[slot]) if slot < self.operands else None
        if numbers is None:
            self.refuse("an operand of it is not constant")
        return numbers

    def present(self, *slots: int) -> list[int]:
        """Return some slots without absent operands."""
        return [slot for slot in slots if slot < len(self.values) and self.values[slot] is not None]

    def refuse(self, reason: str = "it mixes them") -> NoReturn:
        """Raise MatchFailure with the name of the operator."""
        fail(f"{self.node.op_type} along the axis: {reason}", self.node.outputs[0])

    def tied(self, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
        """Yield the factors of other slots that are the same axis. MatchFailure if the axis ends here."""
        value = self.values[slot]
        if value is not None and is_quantized(value) and not is_constant(value):
            self.refuse("it computes with quantized numbers")
        table = {DOMAIN: _BUILTIN, CUSTOM_DOMAIN: _CUSTOM}.get(self.node.domain, {})
        rule = table.get(self.node.op_type)
        if rule is None:
            self.refuse("no rule is known for it")
        for other, at in rule(self, slot, factor):
            if other != slot and self.values[other] is not None:
                yield other, at


_Rule = Callable[[_Operator, int, Factor], Iterator[tuple[int, Factor]]]


def regrouped(shape: Sequence[int], factor: Factor, size: int, to: Sequence[int]) -> Factor | None:
    """Find a factor after a reshape.

    Args:
        shape: The shape before.
        factor: The factor in it.
        size: n.
        to: The shape after, with as many elements.

    Returns:
        The factor in the shape after; None if the reshape divides the n elements.
    """
    before = math.prod(shape[: factor.axis]) * factor.outer
    outermost = 1
    for axis, length in enumerate(to):
        outer = before // max(outermost, 1)
        if outer and outer * outermost == before and length and length % (outer * size) == 0:
            return Factor(axis, outer)
        outermost *= length
    return None


def _aligned(op: _Operator, slot: int, factor: Factor, slots: Sequence[int]) -> Iterator[tuple[int, Factor]]:
    """The same axis from the end, of operands that are not broadcast along it."""
    behind = len(op.shape(slot)) - factor.axis
    for other in op.present(*slots):
        shape = op.shape(other)
        if len(shape) >= behind and shape[-behind] != 1:
            yield other, Factor(len(shape) - behind, factor.outer)


def _same(op: _Operator, slots: Sequence[int], factor: Factor) -> Iterator[tuple[int, Factor]]:
    yield from ((other, factor) for other in op.present(*slots))


def _elementwise(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if not is_elementwise(op.node):
        op.refuse("a vector of conditions selects rows")
    yield from _aligned(op, slot, factor, range(len(op.values)))


def _unary(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    yield from _same(op, (0, op.operands), factor)


def _softmax(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if factor.axis == len(op.shape(slot)) - 1:
        op.followed.reductions[op.node] = None
    yield from _same(op, (0, op.operands), factor)


def _reshape(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if slot not in (0, op.operands):
        op.refuse("a shape is computed from them")
    other = op.operands if slot == 0 else 0
    at = regrouped(op.shape(slot), factor, op.size, op.shape(other))
    if at is None:
        op.refuse("it divides them")
    yield other, at


def _transpose(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    order = [axis % len(op.shape(0)) for axis in op.ints(1)]
    if slot == 0:
        yield op.operands, Factor(order.index(factor.axis), factor.outer)
    else:
        yield 0, Factor(order[factor.axis], factor.outer)


def _broadcast(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if slot not in (0, op.operands):
        op.refuse("a shape is computed from them")
    op.ints(1)
    behind = len(op.shape(slot)) - factor.axis
    small, large = op.shape(0), op.shape(op.operands)
    if len(small) >= behind and small[-behind] != 1:
        if small[-behind] != large[-behind]:
            op.refuse("it repeats them")
        yield from _aligned(op, slot, factor, (0, op.operands))


def _concatenation(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if attribute(op.node, "axis", 0) % len(op.shape(slot)) == factor.axis:
        op.refuse("it joins them with others")
    yield from _same(op, range(len(op.values)), factor)


def _pack(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    yield from _stacked(op, slot, factor, range(op.operands), [op.operands])


def _unpack(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    yield from _stacked(op, slot, factor, range(op.operands, len(op.values)), [0])


def _stacked(
    op: _Operator, slot: int, factor: Factor, parts: Sequence[int], whole: Sequence[int]
) -> Iterator[tuple[int, Factor]]:
    axis = attribute(op.node, "axis", 0) % len(op.shape(whole[0]))
    in_part = factor.axis
    if slot in whole:
        if factor.axis == axis:
            op.refuse("it takes them apart")
        in_part -= factor.axis > axis
    yield from _same(op, parts, Factor(in_part, factor.outer))
    yield from _same(op, whole, Factor(in_part + (in_part >= axis), factor.outer))


def _split(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    data, axis = (0, 2) if op.node.op_type == "SPLIT_V" else (1, 0)
    if op.ints(axis)[0] % len(op.shape(data)) == factor.axis:
        op.refuse("it takes them apart")
    yield from _same(op, (data, *range(op.operands, len(op.values))), factor)


def _slice(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    """All elements, or the first ones: of the axis (not followed further), or a table cut to n rows."""
    if slot not in (0, op.operands):
        op.refuse("bounds are computed from them")
    whole, part = op.shape(0), op.shape(op.operands)
    is_strided = op.node.op_type == "STRIDED_SLICE"
    remaining = [*range(len(whole))]
    if is_strided:
        if attribute(op.node, "newAxisMask", 0) or attribute(op.node, "ellipsisMask", 0):
            op.refuse("it has a mask of new axes")
        shrunk = attribute(op.node, "shrinkAxisMask", 0)
        remaining = [axis for axis in remaining if not shrunk >> axis & 1]
    axis = factor.axis if slot == 0 else remaining[factor.axis]
    at = remaining.index(axis) if axis in remaining else None
    stride = op.ints(3)[axis] if is_strided else 1
    if at is not None and whole[axis] == part[at] and stride == 1:
        yield from ((0, Factor(axis, factor.outer)), (op.operands, Factor(at, factor.outer)))
        return
    is_whole = factor.outer * op.size == op.shape(slot)[factor.axis]
    begin = op.ints(1)[axis]
    if is_strided and attribute(op.node, "beginMask", 0) >> axis & 1:
        begin = 0
    length = part[at] if at is not None else 1
    is_first = slot != 0 and begin == 0  # n rows of a table
    is_sure = slot == 0 and 0 <= begin <= begin + length <= op.least
    if stride != 1 or not is_whole or not (is_first or is_sure):
        op.refuse("it takes some of them")


def _gather(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    table, indices = len(op.shape(0)), len(op.shape(1))
    axis = attribute(op.node, "axis", 0) % table
    if attribute(op.node, "batchDims", 0):
        op.refuse("it looks up by batch")
    at, outer, result = factor.axis, factor.outer, op.operands
    if slot == 1:
        yield result, Factor(axis + at, outer)
    elif slot == 0:
        if at == axis:
            op.refuse("it chooses some of them")
        yield result, Factor(at if at < axis else at + indices - 1, outer)
    elif at < axis or at >= axis + indices:
        yield 0, Factor(at if at < axis else at - indices + 1, outer)
    else:
        yield 1, Factor(at - axis, outer)


def _gather_nd(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    leading = len(op.shape(1)) - 1
    if slot == 0 or factor.axis >= leading:
        op.refuse("it chooses some of them")
    yield from _same(op, (1, op.operands), factor)


def _embedding_lookup(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if slot == 1 and factor.axis == 0:
        op.refuse("it chooses some of them")
    yield from _same(op, (0, op.operands) if factor.axis == 0 else (1, op.operands), factor)


def _fully_connected(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    result = op.operands
    if slot not in (0, result) or factor.axis == len(op.shape(slot)) - 1:
        op.refuse()
    if attribute(op.node, "keepNumDims", 0):
        yield from _same(op, (0, result), factor)
        return
    rows = {other: op.shape(other)[:-1] for other in (0, result)}
    if op.shape(0)[-1] != op.shape(1)[-1]:
        op.refuse("it regroups them")
    other = result if slot == 0 else 0
    at = regrouped(rows[slot], factor, op.size, rows[other])
    if at is None:
        op.refuse("it divides them")
    yield other, at


def _batch_matmul(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    result, rank = op.operands, len(op.shape(slot))
    from_end = factor.axis - rank
    if from_end < -2:
        yield from _aligned(op, slot, factor, (0, 1, result))
        return
    rows, inner_left = (-1, -2) if attribute(op.node, "adjointLhs", 0) else (-2, -1)
    inner_right, columns = (-1, -2) if attribute(op.node, "adjointRhs", 0) else (-2, -1)
    groups = [((0, rows), (result, -2)), ((1, columns), (result, -1)), ((0, inner_left), (1, inner_right))]
    for group in groups:
        if (slot, from_end) in group:
            if group is groups[2]:
                op.followed.reductions[op.node] = None
            yield from ((other, Factor(len(op.shape(other)) + at, factor.outer)) for other, at in group)


def _reduce(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if slot not in (0, op.operands):
        op.refuse()
    rank = len(op.shape(0))
    over = {axis % rank for axis in op.ints(1)}
    keeps = attribute(op.node, "keepDims", 0)
    remaining = [axis for axis in range(rank) if keeps or axis not in over]
    axis = factor.axis if slot == 0 else remaining[factor.axis]
    if axis in over:
        op.refuse()
    yield 0, Factor(axis, factor.outer)
    yield op.operands, Factor(remaining.index(axis), factor.outer)


def _topk(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if slot == 1 or factor.axis == len(op.shape(0)) - 1:
        op.refuse()
    yield from _same(op, (0, *range(op.operands, len(op.values))), factor)


def _cumsum(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if slot == 1 or op.ints(1)[0] % len(op.shape(0)) == factor.axis:
        op.refuse()
    yield from _same(op, (0, op.operands), factor)


def _one_hot(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    rank = len(op.shape(op.operands))
    new = attribute(op.node, "axis", -1) % rank
    if slot == op.operands:
        if factor.axis == new:
            op.refuse("it counts to n")
        yield 0, Factor(factor.axis - (factor.axis > new), factor.outer)
    elif slot == 0:
        yield op.operands, Factor(factor.axis + (factor.axis >= new), factor.outer)
    else:
        op.refuse()


def _pad(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if slot not in (0, op.operands) or any(op.ints(1)[2 * factor.axis : 2 * factor.axis + 2]):
        op.refuse("it adds rows")
    yield from _same(op, (0, op.operands), factor)


def _constant_shape(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    """FILL and RANGE: only a result has the axis."""
    if slot != op.operands:
        op.refuse("a shape is computed from them")
    for operand in range(op.operands):
        if op.node.op_type == "RANGE" or operand == 0:
            op.ints(operand)
    yield from ()


def _dynamic_update_slice(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    """The rows of the block are not the rows of the tensor that it is written into."""
    if slot == 1:
        op.followed.writes[op.node, factor.axis] = None
    elif slot in (0, op.operands):
        yield from _same(op, (0, op.operands), factor)
    else:
        op.refuse("the place is computed from them")


def _rms_norm(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if slot not in (0, op.operands) or factor.axis == len(op.shape(slot)) - 1:
        op.refuse()
    yield from _same(op, (0, op.operands), factor)


def _rope(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    if factor.axis == len(op.shape(slot)) - 1:
        op.refuse()
    yield from _aligned(op, slot, factor, range(len(op.values)))


def _core_attention(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    """`o2o.attention`: T is axis 2 of q and -2 of the mask, S is axis 2 of k and v and -1 of the mask."""
    has_mask = op.operands > core_attention.MASK and op.values[core_attention.MASK] is not None
    masks = [core_attention.MASK] if has_mask else []
    queries = [(0, 2), (op.operands, 1), *((mask, len(op.shape(mask)) - 2) for mask in masks)]
    keys = [(1, 2), (2, 2), *((mask, len(op.shape(mask)) - 1) for mask in masks)]
    yield from _attended(op, slot, factor, queries, keys)


def _attention(op: _Operator, slot: int, factor: Factor) -> Iterator[tuple[int, Factor]]:
    """Circle's ATTENTION. Without caches, the tokens are the keys too."""
    of = attention.Attention.of(op.node)
    present = op.present(*range(len(op.values)))
    masks = [attention.MASK] if attention.MASK in present else []
    rows = [0, op.operands, *(slot for slot in (5, 6) if slot in present), *masks]
    queries = [(slot, len(op.shape(slot)) - 2) for slot in rows]
    keys = [(slot, len(op.shape(slot)) - 1) for slot in masks]
    if of.k_cache is None:
        queries, keys = queries + keys, queries + keys
    else:
        keys += [(slot, 1 if of.layout == "BTNH" else 2) for slot in attention.CACHES]
    yield from _attended(op, slot, factor, queries, keys)


def _attended(
    op: _Operator,
    slot: int,
    factor: Factor,
    queries: Sequence[tuple[int, int]],
    keys: Sequence[tuple[int, int]],
) -> Iterator[tuple[int, Factor]]:
    for group in (keys, queries):
        if (slot, factor.axis) in group and factor.outer == 1:
            if group is keys:
                op.followed.reductions[op.node] = None
            for other, axis in group:
                if axis >= 0 and op.shape(other)[axis] != 1:
                    yield other, Factor(axis)
            return
    op.refuse()


_BUILTIN: dict[str, _Rule] = {
    **{name: _elementwise for name, traits in BUILTIN.items() if traits.elementwise},
    **dict.fromkeys(("GELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "ELU", "HARD_SWISH", "ROUND"), _unary),
    **dict.fromkeys(("DEQUANTIZE", "ZEROS_LIKE"), _unary),
    **dict.fromkeys(("SOFTMAX", "LOG_SOFTMAX"), _softmax),
    **dict.fromkeys(("RESHAPE", "EXPAND_DIMS", "SQUEEZE"), _reshape),
    **dict.fromkeys(("BROADCAST_TO", "TILE"), _broadcast),
    **dict.fromkeys(("SUM", "MEAN", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"), _reduce),
    **dict.fromkeys(("REDUCE_ANY", "REDUCE_ALL"), _reduce),
    **dict.fromkeys(("ARG_MAX", "ARG_MIN"), _reduce),
    **dict.fromkeys(("PAD", "PADV2"), _pad),
    **dict.fromkeys(("SPLIT", "SPLIT_V"), _split),
    **dict.fromkeys(("SLICE", "STRIDED_SLICE"), _slice),
    **dict.fromkeys(("FILL", "RANGE"), _constant_shape),
    "TRANSPOSE": _transpose,
    "CONCATENATION": _concatenation,
    "PACK": _pack,
    "UNPACK": _unpack,
    "GATHER": _gather,
    "GATHER_ND": _gather_nd,
    "EMBEDDING_LOOKUP": _embedding_lookup,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _batch_matmul,
    "TOPK_V2": _topk,
    "CUMSUM": _cumsum,
    "ONE_HOT": _one_hot,
    "DYNAMIC_UPDATE_SLICE": _dynamic_update_slice,
    "RMS_NORM": _rms_norm,
    "ROPE": _rope,
    "ATTENTION": _attention,
}
_CUSTOM: dict[str, _Rule] = dict.fromkeys(core_attention.NAMES, _core_attention)
