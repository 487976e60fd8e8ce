"""Scaled dot-product attention around a softmax: softmax(scale q k' + mask) v, in any layout.

Projections, caches and rotations are not matched, only the two products and the operators between them. There
are T queries of N = K * G heads, and S keys and values of K heads. Either the keys are repeated for the G
query heads of their group, or the query heads of a group are rows of one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import attribute, shape_of
from o2o.operators.traits import LAYOUT_OPS, RESHAPE_OPS, is_elementwise
from o2o.rewriting.attention.parts import follow_down, nodes_of
from o2o.rewriting.axes import Axes, Factors
from o2o.rewriting.matchers import (
    MatchFailure,
    check_no_activation,
    constant_ints,
    fail,
    operand_and_factor,
    producer_of,
    require_producer,
)


@dataclass(frozen=True)
class LabeledValue:
    """A value and its named axes."""

    value: ir.Value
    axes: Axes


@dataclass(frozen=True)
class Mask:
    """The tensor [.., rows, S] that is added to the scores. Its first `rows` rows apply to each head."""

    value: ir.Value
    rows: int  # T, or 1
    repeated: int  # how many times the tensor holds these rows


@dataclass(frozen=True)
class Sdpa:
    """Proven scaled dot-product attention.

    Attributes:
        factors: The sizes T, S, K, G and H.
        q, k, v: The operands.
        mask: The mask, or None.
        scale: The scale of q k'.
        cap: Before the mask is added, scores become cap * tanh(score / cap). None: they do not.
        result: The result.
        last: The node that computes it. All operands are computed before this node.
    """

    factors: Factors
    q: LabeledValue
    k: LabeledValue
    v: LabeledValue
    mask: Mask | None
    scale: float
    cap: float | None
    result: LabeledValue
    last: ir.Node


def query_axes(factors: Factors) -> Axes:
    """Return the axes of queries, or of the result, as [1, T, N, H].

    Args:
        factors: The sizes.

    Returns:
        The axes.
    """
    return factors.axes("", "T", "KG", "H")


def key_axes(factors: Factors) -> Axes:
    """Return the axes of keys, or values, as [1, S, K, H].

    Args:
        factors: The sizes.

    Returns:
        The axes.
    """
    return factors.axes("", "S", "K", "H")


def match_sdpa(softmax: ir.Node) -> Sdpa:
    """Match scaled dot-product attention around a softmax.

    Several readings of the axes may be right: one token of many heads is many tokens of one head. The one
    that needs the fewest transposes to [1, T, N, H] is returned.

    Args:
        softmax: The SOFTMAX.

    Returns:
        The operands and the result.

    Raises:
        MatchFailure: The first condition that fails.
    """
    scores = _find_scores(softmax)
    product, path = follow_down(softmax.outputs[0], "the attention weights", "BATCH_MATMUL")
    if product.inputs[0] is not path[-1]:
        fail("the attention weights are not the left operand of their product with v", product.outputs[0])
    matches: list[Sdpa] = []
    first: MatchFailure | None = None
    for reading in _readings(scores.product):
        try:
            matches.append(_read(reading, scores, nodes_of(path), product))
        except MatchFailure as failure:
            first = first or failure
    if not matches:
        raise first or MatchFailure("the heads of q and k do not agree", scores.product.outputs[0])
    return min(matches, key=_num_transposes)


def _num_transposes(core: Sdpa) -> int:
    """How many operands and results have another layout than wanted."""
    factors = core.factors
    wanted = {
        "q": query_axes(factors),
        "k": key_axes(factors),
        "v": key_axes(factors),
        "result": query_axes(factors),
    }
    return sum(getattr(core, name).axes != axes for name, axes in wanted.items())


# ---- the scores --------------------------------------------------------------------------------------


@dataclass
class _Scores:
    """From q k' down to the softmax."""

    product: ir.Node
    steps: list[ir.Node] = field(default_factory=list)
    scale: float = 1.0
    cap: float | None = None
    mask: ir.Value | None = None
    masked_by: ir.Node | None = None


def _find_scores(softmax: ir.Node) -> _Scores:
    if attribute(softmax, "beta", 1.0) != 1:
        fail("the softmax scales its operand", softmax.outputs[0])
    value = softmax.inputs[0]
    assert value is not None
    steps: list[ir.Node] = []
    mask: tuple[ir.Value, ir.Node] | None = None
    factor, cap = 1.0, None
    while True:
        node = require_producer(value, "the scores", "BATCH_MATMUL", "ADD", "MUL", "DIV", "TANH", *LAYOUT_OPS)
        if node.op_type == "BATCH_MATMUL":
            break
        steps.append(node)
        check_no_activation(node)
        source = node.inputs[0]
        if node.op_type == "ADD":
            if mask is not None:
                fail("the scores have two masks", node.outputs[0])
            if factor != 1 or cap is not None:
                fail("the mask is scaled or capped too", node.outputs[0])
            source, other = _scores_and_mask(node)
            mask = other, node
        elif node.op_type == "TANH":
            if cap is not None:
                fail("the scores are capped twice", node.outputs[0])
            factor, cap = 1.0, factor
        elif node.op_type in ("MUL", "DIV"):
            product = operand_and_factor(node)
            if product is None:
                fail(
                    "the scores are multiplied by something that is not one constant number", node.outputs[0]
                )
            source, number = product
            factor *= number
        assert source is not None
        value = source
    return _Scores(node, steps[::-1], factor * (cap or 1.0), cap, *(mask or (None, None)))


def _scores_and_mask(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    one, two = node.inputs
    assert one is not None
    assert two is not None
    for scores, mask in ((one, two), (two, one)):
        if shape_of(scores) == shape_of(node.outputs[0]) and _comes_from_product(scores):
            return scores, mask
    fail("no operand of the sum is a product of q and k", node.outputs[0])


def _comes_from_product(value: ir.Value) -> bool:
    while (node := producer_of(value, "MUL", "DIV", "TANH", *LAYOUT_OPS)) is not None:
        value = _operand(node)
    return producer_of(value, "BATCH_MATMUL") is not None


def _operand(node: ir.Node) -> ir.Value:
    """The operand of `node` that leads to the product, not the constant factor."""
    product = operand_and_factor(node) if node.op_type in ("MUL", "DIV") else None
    source = product[0] if product is not None else node.inputs[0]
    assert source is not None
    return source


# ---- readings of the heads ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """One meaning of the axes of q k': [.., heads, rows, S]."""

    factors: Factors
    heads: tuple[str, ...]
    rows: tuple[str, ...]


def _readings(product: ir.Node) -> Iterator[_Reading]:
    left, right = product.inputs[:2]
    assert left is not None
    assert right is not None
    *batch, rows, H = _plain(left, attribute(product, "adjointLhs", 0))
    *others, H_, S = _plain(right, attribute(product, "adjointRhs", 0))
    if batch != others or H != H_ or not 1 <= len(batch) <= 2 or any(dim != 1 for dim in batch[:-1]):
        fail("q k' is not a product of one batch of heads", product.outputs[0])
    A = batch[-1]
    value = right
    while (node := producer_of(value, "MUL", "DIV", *LAYOUT_OPS)) is not None:
        if node.op_type == "BROADCAST_TO":
            before, after = (math.prod(shape_of(v)) for v in (node.inputs[0], node.outputs[0]))  # type: ignore[arg-type]
            G = after // max(before, 1)
            if before * G == after and G > 1 and A % G == 0:
                sizes = {"K": A // G, "G": G, "T": rows, "S": S, "H": H}
                yield _Reading(Factors(sizes), ("K", "G"), ("T",))
                return
        value = _operand(node)
    for G in range(rows, 0, -1):
        if rows % G == 0:
            sizes = {"K": A, "G": G, "T": rows // G, "S": S, "H": H}
            yield _Reading(Factors(sizes), ("K",), ("G", "T"))


def _plain(value: ir.Value, adjoint: int) -> list[int]:
    *batch, a, b = shape_of(value)
    return [*batch, b, a] if adjoint else [*batch, a, b]


def _read(reading: _Reading, scores: _Scores, path: Sequence[ir.Node], product: ir.Node) -> Sdpa:
    factors, heads, rows = reading.factors, reading.heads, reading.rows
    q, k = scores.product.inputs[:2]
    v = product.inputs[1]
    assert q is not None
    assert k is not None
    assert v is not None
    lead: list[tuple[str, ...]] = [()] * (len(shape_of(q)) - 2)
    lead[-1] = heads
    q_axes = _swapped(factors.axes(*lead, rows, "H"), attribute(scores.product, "adjointLhs", 0))
    k_axes = _swapped(factors.axes(*lead, "H", "S"), attribute(scores.product, "adjointRhs", 0))
    axes = factors.axes(*lead, rows, "S")
    mask = None
    for node in scores.steps:
        if node.op_type in LAYOUT_OPS:
            axes = factors.through([node], axes)
        if node is scores.masked_by:
            assert scores.mask is not None
            mask = _mask(factors, scores.mask, axes)
    if axes[-1] != factors.axes("S")[0]:
        fail("the softmax does not go over the keys", scores.product.outputs[0])
    axes = factors.through(path, axes)
    if attribute(product, "adjointLhs", 0) or axes[-1] != factors.axes("S")[0]:
        fail("the weights are not multiplied with the values over the keys", product.outputs[0])
    if shape_of(product.outputs[0])[-1] != factors.sizes["H"]:
        fail("values have another head dimension than keys", product.outputs[0])
    if shape_of(v)[:-2] != factors.shape(axes[:-2]):
        fail("the values are repeated by BATCH_MATMUL itself", v)
    v_axes = _swapped((*axes[:-2], *factors.axes("S", "H")), attribute(product, "adjointRhs", 0))

    q_labeled, q_scale = _source(factors, q, q_axes, query_axes(factors), scaled=True)
    k_labeled, k_scale = _source(factors, k, k_axes, key_axes(factors), scaled=True)
    v_labeled, _ = _source(factors, v, v_axes, key_axes(factors), scaled=False)
    for labeled in (k_labeled, v_labeled):
        if "G" in {name for axis in labeled.axes for name in axis}:
            fail("each query head has keys or values of its own", labeled.value)
    result = _result(factors, product.outputs[0], (*axes[:-1], *factors.axes("H")))
    scale = scores.scale * q_scale * k_scale
    return Sdpa(factors, q_labeled, k_labeled, v_labeled, mask, scale, scores.cap, result, product)


def _swapped(axes: Axes, adjoint: int) -> Axes:
    return (*axes[:-2], axes[-1], axes[-2]) if adjoint else axes


# ---- outwards ----------------------------------------------------------------------------------------


def _source(
    factors: Factors, value: ir.Value, axes: Axes, wanted: Axes, scaled: bool
) -> tuple[LabeledValue, float]:
    """The source of `value` through layout operators, and the scale on the path if `scaled` allows one.

    It is the nearest source with axes `wanted`, else the farthest.
    """
    scale = 1.0
    while axes != wanted:
        node = producer_of(value, *(("MUL", "DIV") if scaled else ()), *LAYOUT_OPS)
        if node is None:
            break
        source = node.inputs[0]
        assert source is not None
        if node.op_type in ("MUL", "DIV"):
            product = operand_and_factor(node)
            if product is None or attribute(node, "fusedActivationFunction", 0):
                break
            value, number = product
            scale *= number
            continue
        try:
            axes = _before(factors, node, source, axes)
        except MatchFailure:
            break
        value = source
    return LabeledValue(value, axes), scale


def _before(factors: Factors, node: ir.Node, source: ir.Value, axes: Axes) -> Axes:
    """The axes of the operand of a layout operator, from the axes of its result."""
    if node.op_type == "TRANSPOSE":
        permutation = constant_ints(node.inputs[1])
        if permutation is None:
            fail("a TRANSPOSE whose permutation is not constant", node.outputs[0])
        before: list[tuple[str, ...]] = [()] * len(axes)
        for place, axis in zip(permutation, axes, strict=True):
            before[place] = axis
        return tuple(before)
    if node.op_type == "BROADCAST_TO":
        shape = shape_of(source)
        added = len(axes) - len(shape)
        if any(axis not in ((), ("G",)) for axis in axes[:added]):
            fail("a BROADCAST_TO repeats more than heads", node.outputs[0])
        unrepeated = []
        for dim, axis in zip(shape, axes[added:], strict=True):
            if dim != factors.shape((axis,))[0] and axis != ("G",):
                fail("a BROADCAST_TO repeats more than heads", node.outputs[0])
            unrepeated.append(axis if dim == factors.shape((axis,))[0] else ())
        return tuple(unrepeated)
    return factors.regroup(axes, source)


def _result(factors: Factors, value: ir.Value, axes: Axes) -> LabeledValue:
    """`value`, or its only descendant through layout operators that is [1, T, N, H]."""
    first, wanted = LabeledValue(value, axes), query_axes(factors)
    while axes != wanted:
        users = {use.node for use in value.uses()}
        user = users.pop() if len(users) == 1 and not value.is_graph_output() else None
        if user is None or user.op_type not in LAYOUT_OPS:
            return first
        try:
            axes = factors.through([user], axes)
        except MatchFailure:
            return first
        value = user.outputs[0]
    return LabeledValue(value, axes)


# ---- the mask ----------------------------------------------------------------------------------------


def _mask(factors: Factors, mask: ir.Value, axes: Axes) -> Mask:
    """`mask`, added to scores with these axes."""
    shape = shape_of(mask)
    shape = (1,) * (len(axes) - len(shape)) + shape
    *outer, rows, columns = shape
    if len(shape) != len(axes) or any(dim != 1 for dim in outer):
        fail("the heads are masked differently", mask)
    if columns != factors.sizes["S"] or axes[-1] != factors.axes("S")[0]:
        fail("the last axis of the mask is not the keys", mask)
    T, G = factors.sizes["T"], factors.sizes["G"]
    if rows == 1 or (rows == T and axes[-2] == factors.axes("T")[0]):
        return Mask(mask, rows, 1)
    if rows == G * T and axes[-2] == factors.axes("GT")[0] and _is_periodic(mask, T):
        return Mask(mask, T, G)
    fail("the heads are masked differently", mask)


def _is_periodic(value: ir.Value, period: int) -> bool:
    """Whether row t + `period` of `value` [.., rows, columns] always equals row t."""
    shape = shape_of(value)
    if len(shape) < 2 or shape[-2] in (1, period):
        return True
    if (array := constant_array(value)) is not None:
        blocks = array.reshape(-1, shape[-2] // period, period, shape[-1])
        return bool((blocks == blocks[:, :1]).all())
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "CONCATENATION" and attribute(node, "axis", 0) % len(shape) == len(shape) - 2:
        same = all(v is node.inputs[0] for v in node.inputs)
        return same and shape_of(node.inputs[0])[-2] == period  # type: ignore[arg-type]
    if node.op_type in RESHAPE_OPS:
        source = node.inputs[0]
        return source is not None and shape_of(source)[-2:] == shape[-2:] and _is_periodic(source, period)
    return is_elementwise(node) and all(v is not None and _is_periodic(v, period) for v in node.inputs)
