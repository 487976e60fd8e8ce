"""Scaled dot-product attention around a softmax, in any layout: what `o2o.attention` computes.

Projections, caches and rotations are not matched, only the two products and the operators between them. There
are B texts, T queries of N = K * G heads, and S keys and values of K heads. Either the keys are repeated for
the G query heads of their group, or the query heads of a group are rows of one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from o2o.model import attribute, shape_of
from o2o.operators.traits import LAYOUT_OPS
from o2o.rewriting.attention.layouts import LabeledValue
from o2o.rewriting.attention.mask_axes import own_axes, repeats_rows
from o2o.rewriting.attention.scores import Scores, Term, find_scores, follow_weights, nodes_of
from o2o.rewriting.axes import Axes, Factors, trace_layout
from o2o.rewriting.matchers import MatchFailure, constant_ints, fail, operand_and_factor, producer_of


class LabeledTerm(NamedTuple):
    """A mask or bias, and the named axes of the scores to which it is broadcast."""

    term: Term
    axes: Axes


@dataclass(frozen=True)
class Sdpa:
    """Proven scaled dot-product attention.

    Attributes:
        factors: The sizes B, T, S, K, G and H.
        q, k, v: The operands.
        terms: Masks and biases, in order.
        sinks: One more logit of each head, or None.
        scale: The scale of q k'.
        cap: Before a mask is added, scores become cap * tanh(score / cap). None: they do not.
        result: The result.
        last: The node that computes it. All operands are computed before this node.
        zeroes_nan: Whether a query that sees no key gets zeros.
        precision: The dtype of the softmax, if it is another than that of the scores.
        sources: For q, k and v the tensors that hold it in any layout, from the product up.
    """

    factors: Factors
    q: LabeledValue
    k: LabeledValue
    v: LabeledValue
    terms: tuple[LabeledTerm, ...]
    sinks: ir.Value | None
    scale: float
    cap: float | None
    result: LabeledValue
    last: ir.Node
    zeroes_nan: bool
    precision: ir.DataType | None
    sources: tuple[tuple[LabeledValue, ...], ...]


@dataclass(frozen=True)
class Layouts:
    """The wanted axes of queries, of keys and values, and of the result."""

    q: Axes
    kv: Axes
    result: Axes


LayoutsOf = Callable[[Factors], Layouts]


def by_head(factors: Factors) -> Layouts:
    """Return the layouts of `o2o.attention`: q [B, N, T, H], k and v [B, K, S, H], result [B, T, N, H].

    Args:
        factors: The sizes.

    Returns:
        The layouts.
    """
    return Layouts(
        factors.axes("B", "KG", "T", "H"), factors.axes("B", "K", "S", "H"), factors.axes("B", "T", "KG", "H")
    )


def by_token(factors: Factors) -> Layouts:
    """Return the layouts of LiteRT's composite: q and result [B, T, N, H], k and v [B, S, K, H].

    Args:
        factors: The sizes.

    Returns:
        The layouts.
    """
    return Layouts(
        factors.axes("B", "T", "KG", "H"), factors.axes("B", "S", "K", "H"), factors.axes("B", "T", "KG", "H")
    )


def match_sdpa(softmax: ir.Node, wanted: LayoutsOf, batch: int = 1) -> Sdpa:
    """Match scaled dot-product attention around a softmax.

    Several readings of the axes may be right: one token of many heads is many tokens of one head. The best
    one has as many tokens as new keys in a cache. Then it has the fewest masks by head, and the fewest
    transposes to the wanted layouts.

    Args:
        softmax: The SOFTMAX.
        wanted: The layouts in which operands and result are needed.
        batch: B. Another number than 1 must be unlike all numbers of heads and tokens.

    Returns:
        The operands and the result.

    Raises:
        MatchFailure: The first condition that fails.
    """
    scores = find_scores(softmax)
    product, path = follow_weights(softmax, scores)
    first: MatchFailure | None = None
    for readings in _readings(scores.product, batch):
        matches: list[Sdpa] = []
        for reading in readings:
            try:
                matches.append(_read(reading, scores, nodes_of(path), product, wanted))
            except MatchFailure as failure:
                first = first or failure
        if matches:
            return min(matches, key=lambda match: _cost(match, wanted))
    raise first or MatchFailure("the heads of q and k do not agree", scores.product.outputs[0])


def _cost(match: Sdpa, wanted: LayoutsOf) -> tuple[bool, int, int]:
    """Whether tokens are not the new keys; its masks by head; operands and results in other layouts."""
    layouts = wanted(match.factors)
    differing = sum(_differs_by_head(match.factors, *labeled) for labeled in match.terms)
    transposed = (match.q.axes != layouts.q) + (match.result.axes != layouts.result)
    transposed += sum(labeled.axes != layouts.kv for labeled in (match.k, match.v))
    return match.factors.sizes["T"] not in _new_keys(match), differing, transposed


def _new_keys(match: Sdpa) -> Container[int]:
    """How many keys may be new: as many as are joined with earlier ones, or any number without a cache."""
    sizes = match.factors.sizes
    source, _ = trace_layout(match.k.value)
    node = producer_of(source, "CONCATENATION", "DYNAMIC_UPDATE_SLICE")
    new = node.inputs[1] if node is not None and len(node.inputs) > 1 else None
    row = sizes["B"] * sizes["K"] * sizes["H"]
    return range(sizes["T"] + 1) if new is None else {math.prod(shape_of(new)) // row}


def _differs_by_head(factors: Factors, term: Term, axes: Axes) -> bool:
    axes = own_axes(factors, term.value, axes)
    by_head = any(name in ("K", "G") for axis in axes for name in axis)
    return by_head and not repeats_rows(factors, term.value, axes)


# ---- readings of the heads ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """One meaning of the axes of q k': [.., heads, rows, S]. Keys repeat no heads of their own."""

    factors: Factors
    heads: tuple[tuple[str, ...], ...]  # of the left operand and the product
    key_heads: tuple[tuple[str, ...], ...]
    rows: tuple[str, ...]


def _readings(product: ir.Node, texts: int) -> Iterator[Iterator[_Reading]]:
    """Groups of readings; a later group only counts if all of the earlier ones fail."""
    left, right = product.inputs[:2]
    assert left is not None
    assert right is not None
    *batch, rows, H = _plain(left, attribute(product, "adjointLhs", 0))
    *others, H_, S = _plain(right, attribute(product, "adjointRhs", 0))
    pairs = list(zip(batch, others, strict=False))
    of_texts, sizes, places = _without_texts(batch, texts)
    repeated = [place for place, (dim, other) in enumerate(pairs) if dim != other]
    if (
        H != H_
        or sizes is None
        or not 1 <= len(batch) == len(others)
        or any(other not in (1, dim) for dim, other in pairs)
        or len(places) > 2
        or (repeated and repeated != places[-1:])
    ):
        fail("q k' is not a product of one batch of heads", product.outputs[0])

    def reading(K: int, G: int, T: int, heads: Sequence[str], rows: str) -> _Reading:
        names = [""] * len(batch)
        names[of_texts] = "B"
        for place, name in zip(places, heads, strict=True):
            names[place] += name
        key_names = ["" if place in repeated else name for place, name in enumerate(names)]
        factors = Factors({"B": texts, "K": K, "G": G, "T": T, "S": S, "H": H})
        return _Reading(factors, tuple(map(tuple, names)), tuple(map(tuple, key_names)), tuple(rows))

    *outer, A = [sizes[place] for place in places]
    if outer:
        yield iter([reading(outer[0], A, rows, "KG", "T")])
    elif repeated:  # BATCH_MATMUL repeats the only head of the keys
        yield iter([reading(1, A, rows, "G", "T")])
    else:
        G = _repeats(right)
        if G > 1 and A % G == 0:
            yield iter([reading(A // G, G, rows, ["KG"], "T")])
        divisors = (G for G in range(rows, 0, -1) if rows % G == 0)
        yield (reading(A, G, rows // G, "K", "GT") for G in divisors)


def _without_texts(batch: Sequence[int], texts: int) -> tuple[int, list[int] | None, list[int]]:
    """The axis of B, the sizes of the batch axes without B, and the axes that hold heads.

    B is the first axis that is not 1, alone or joined with heads. The sizes are None if it is not there.
    """
    first = next((place for place, dim in enumerate(batch) if dim != 1), 0) if texts != 1 else 0
    if not batch or batch[first] % texts != 0:
        return first, None, [0]
    sizes = [dim // texts if place == first else dim for place, dim in enumerate(batch)]
    return first, sizes, [place for place, dim in enumerate(sizes) if dim != 1] or [len(batch) - 1]


def _repeats(value: ir.Value) -> int:
    """How many times a BROADCAST_TO above `value` repeats heads; 1 for never."""
    while (node := producer_of(value, "MUL", "DIV", *LAYOUT_OPS)) is not None:
        source = node.inputs[0]
        if node.op_type in ("MUL", "DIV"):
            product = operand_and_factor(node)
            source = product[0] if product is not None else source
        assert source is not None
        if node.op_type == "BROADCAST_TO":
            before, after = math.prod(shape_of(source)), math.prod(shape_of(node.outputs[0]))
            if before and before != after and after % before == 0:
                return after // before
        value = source
    return 1


def _plain(value: ir.Value, adjoint: int) -> list[int]:
    *batch, a, b = shape_of(value)
    return [*batch, b, a] if adjoint else [*batch, a, b]


def _read(
    reading: _Reading, scores: Scores, path: Sequence[ir.Node], product: ir.Node, wanted: LayoutsOf
) -> Sdpa:
    factors, rows = reading.factors, reading.rows
    layouts = wanted(factors)
    q, k = scores.product.inputs[:2]
    v = product.inputs[1]
    assert q is not None
    assert k is not None
    assert v is not None
    q_axes = _swapped(factors.axes(*reading.heads, rows, "H"), attribute(scores.product, "adjointLhs", 0))
    k_axes = _swapped(factors.axes(*reading.key_heads, "H", "S"), attribute(scores.product, "adjointRhs", 0))
    axes = factors.axes(*reading.heads, rows, "S")
    keys = factors.axes("S")[0]
    at: dict[ir.Node, Axes] = {}
    for node in scores.steps:
        if node.op_type in LAYOUT_OPS:
            axes = factors.through([node], axes)
        at[node] = axes
    if axes[-1] != keys:
        fail("the softmax does not go over the keys", scores.product.outputs[0])
    softmax_axes, axes = axes, factors.through(path, axes)
    if attribute(product, "adjointLhs", 0) or axes[-1] != keys:
        fail("the weights are not multiplied with the values over the keys", product.outputs[0])
    if shape_of(product.outputs[0])[-1] != factors.sizes["H"]:
        fail("values have another head dimension than keys", product.outputs[0])
    lead = _value_heads(factors, shape_of(v)[:-2], axes[:-2], v)
    v_axes = _swapped((*lead, *factors.axes("S", "H")), attribute(product, "adjointRhs", 0))

    q_sources, q_scale = _sources(factors, q, q_axes, scaled=True)
    k_sources, k_scale = _sources(factors, k, k_axes, scaled=True)
    v_sources, _ = _sources(factors, v, v_axes, scaled=False)
    q_labeled = _nearest(q_sources, layouts.q)
    k_labeled, v_labeled = (_nearest(sources, layouts.kv) for sources in (k_sources, v_sources))
    for labeled in (k_labeled, v_labeled):
        if "G" in {name for axis in labeled.axes for name in axis}:
            fail("each query head has keys or values of its own", labeled.value)
    result = _result(factors, product.outputs[0], (*axes[:-1], *factors.axes("H")), layouts.result)
    terms = tuple(LabeledTerm(term, at[term.node]) for term in scores.terms)
    for term, term_axes in terms:
        own_axes(factors, term.value, term_axes)  # it fits the scores
    sinks = _sinks(factors, scores.sinks, softmax_axes) if scores.sinks is not None else None
    scale = scores.scale * q_scale * k_scale
    operands = q_labeled, k_labeled, v_labeled, terms, sinks
    sources = tuple(q_sources), tuple(k_sources), tuple(v_sources)
    more = scores.zeroes_nan, scores.precision, sources
    return Sdpa(factors, *operands, scale, scores.cap, result, product, *more)


def _swapped(axes: Axes, adjoint: int) -> Axes:
    return (*axes[:-2], axes[-1], axes[-2]) if adjoint else axes


def _value_heads(factors: Factors, shape: tuple[int, ...], axes: Axes, v: ir.Value) -> Axes:
    """The axes of the heads of v, which has this shape, at the product with weights of these axes.

    BATCH_MATMUL itself may repeat v for all query heads of a group.
    """
    if shape == factors.shape(axes):
        return axes
    groups = factors.axes("G")[0]
    if len(shape) == len(axes) and all(
        dim == size or (dim == 1 and axis == groups)
        for dim, size, axis in zip(shape, factors.shape(axes), axes, strict=True)
    ):
        return tuple(axis if dim != 1 else () for dim, axis in zip(shape, axes, strict=True))
    fail("the values are repeated by BATCH_MATMUL itself", v)


# ---- outwards ----------------------------------------------------------------------------------------


def _sources(factors: Factors, value: ir.Value, axes: Axes, scaled: bool) -> tuple[list[LabeledValue], float]:
    """The tensors above `value` through layout operators, the nearest first.

    If `scaled`, scales are passed, and only the tensors above the last scale count. Returns this scale, too.
    """
    scale = 1.0
    candidates = [LabeledValue(value, axes)]
    while True:
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
            candidates.clear()
        else:
            try:
                axes = _before(factors, node, source, axes)
            except MatchFailure:
                break
            value = source
        candidates.append(LabeledValue(value, axes))
    return candidates, scale


def _nearest(sources: Sequence[LabeledValue], wanted: Axes) -> LabeledValue:
    """The nearest source with axes `wanted`, else the farthest one."""
    return next((source for source in sources if source.axes == wanted), sources[-1])


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


def _result(factors: Factors, value: ir.Value, axes: Axes, wanted: Axes) -> LabeledValue:
    """`value`, or its only descendant through layout operators that has the wanted axes."""
    first = LabeledValue(value, axes)
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


# ---- sinks -------------------------------------------------------------------------------------------


def _sinks(factors: Factors, value: ir.Value, scores_axes: Axes) -> ir.Value:
    """The source [N] of sinks, which are concatenated with scores of these axes."""
    axes: Axes = (*scores_axes[:-1], ())
    heads = list(factors.axes("KG")[0])
    while [name for axis in axes for name in axis] != heads:
        node = producer_of(value, *LAYOUT_OPS)
        if node is None:
            fail("the sinks are not one number a head", value)
        source = node.inputs[0]
        assert source is not None
        if node.op_type == "BROADCAST_TO":
            shape = shape_of(source)
            added = len(axes) - len(shape)
            axes = tuple(() if dim == 1 else axis for dim, axis in zip(shape, axes[added:], strict=True))
        else:
            axes = _before(factors, node, source, axes)
        value = source
    return value
