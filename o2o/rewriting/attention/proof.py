"""Proving what the axes of an attention block mean, from its projections to its result."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import get_args

import onnx_ir as ir

from o2o.contract import Layout, role_of
from o2o.errors import ModelError
from o2o.model import attribute, shape_of
from o2o.operators.attention import Attention
from o2o.operators.facts import LAYOUT_OPS, RESHAPE_OPS
from o2o.rewriting.attention.parts import CacheUpdate, Projection, Scores
from o2o.rewriting.axes import Axes, Factors, trace_layout
from o2o.rewriting.matchers import MatchFailure, fail, single_user
from o2o.rewriting.rope import Rotation


def factors_of(q: Projection, k: Projection, v: Projection, scores: Scores, joined: CacheUpdate) -> Factors:
    """The sizes of the block: T tokens, S keys, K key heads, G query heads a key head, H head dim."""
    shape = shape_of(q.x)
    if any(dim != 1 for dim in shape[:-2]):
        fail("ATTENTION takes one batch", q.x)
    T = shape[-2] if len(shape) > 1 else 1
    lhs = shape_of(scores.matmul.inputs[0])  # type: ignore[arg-type]
    H = lhs[-2] if attribute(scores.matmul, "adjointLhs") else lhs[-1]
    rows = [shape_of(p.w)[0] for p in (q, k, v)]
    if rows[1] != rows[2]:
        fail("keys and values differ in size", v.w)
    if any(n % H for n in rows) or rows[0] % rows[1]:
        fail(f"projections of {rows} rows do not divide into heads of {H}", scores.matmul.outputs[0])
    S = T
    if joined.node is not None:
        output = shape_of(joined.node.outputs[0])
        S = math.prod(output) // rows[1]
    K = rows[1] // H
    return Factors({"T": T, "S": S, "K": K, "G": rows[0] // rows[1], "H": H})


def projected(factors: Factors, projection: Projection, tokens: str, heads: str) -> Axes:
    """The axes of a projection's result."""
    return flat_axes(factors, projection.node.outputs[0], tokens, heads)


def flat_axes(factors: Factors, value: ir.Value, tokens: str, heads: str) -> Axes:
    """The axes of a value with a row a token, in which its heads stand side by side."""
    shape = shape_of(value)
    axes = factors.axes(*[()] * (len(shape) - 2), tokens, heads)
    if len(shape) < 2 or factors.shape(axes) != shape:
        fail(f"a projection of {factors.sizes} should be {list(factors.shape(axes))}", value)
    return axes


def rotated(
    factors: Factors,
    projection: Projection,
    rotation: Rotation | None,
    layout: list[ir.Node],
    tokens: str,
    heads: str,
) -> Axes:
    """The axes of q or of new k, from its projection through its rotation."""
    axes = projected(factors, projection, tokens, heads)
    if rotation is None:
        return factors.through(layout, axes)
    _, before = trace_layout(rotation.x)
    axes = factors.through(before, axes)
    token_axis, head_axis = factors.axes(tokens, "H")
    if axes[-1] != head_axis:
        fail("the rotation does not go over the head dimension", rotation.x)
    for table in (rotation.cos, rotation.sin):
        shape = shape_of(table)
        wanted = tuple(
            dim if axis and axis in (token_axis, head_axis) else 1
            for axis, dim in zip(axes, shape_of(rotation.x), strict=True)
        )
        if (1,) * (len(wanted) - len(shape)) + shape != wanted:
            fail(
                f"a rotation table should be {list(wanted)}: one row a token, the same for all heads",
                table,
            )
    return factors.through(layout, axes)


def join(factors: Factors, joined: CacheUpdate, axes: Axes, until: ir.Node) -> Axes:
    """The axes after the cache: the token axis of the new becomes that of the whole.

    until: the node before which nothing else may use what comes of the cache.
    """
    if joined.node is None:
        return axes
    output = joined.node.outputs[0]
    after, new = shape_of(output), shape_of(joined.node.inputs[1])  # type: ignore[arg-type]
    grown = [axis for axis in range(len(after)) if after[axis] != new[axis]]
    if not grown and ("S",) in axes:  # as many tokens as the cache has rows
        grown = [axes.index(("S",))]
    if len(grown) != 1 or axes[grown[0]] not in ((), ("S",)):
        fail("the cache does not grow along its tokens alone", output)
    (joined.axis,) = grown
    if joined.node.op_type == "CONCATENATION":
        if attribute(joined.node, "axis", 0) % len(after) != joined.axis:
            fail("the cache is not joined along its tokens", output)
        # it goes on reading the cache that ATTENTION writes, if anyone else needs it
        while (user := single_user(output, "the joined cache")) is not until:
            output = user.outputs[0]
    axes = (*axes[: joined.axis], ("S",), *axes[joined.axis + 1 :])
    past = shape_of(joined.node.inputs[0])  # type: ignore[arg-type]
    cache = Factors({**factors.sizes, "S": past[joined.axis]})
    for layout in get_args(Layout):
        cache_axes = _cache_axes(cache, layout)
        if cache.shape(cache_axes) != shape_of(joined.past):  # type: ignore[arg-type]
            continue
        if cache.through(joined.way, cache_axes) == cache.axes(*axes):
            joined.layout = layout
            joined.given_out = _given_out(factors, joined, axes)
            return axes
    fail("the cache is neither [1, K, S, H] nor [1, S, K, H]", output)


def _cache_axes(factors: Factors, layout: Layout) -> Axes:
    return factors.axes(*({"B": (), "N": "K", "T": "S", "H": "H"}[axis] for axis in layout))


def _given_out(factors: Factors, joined: CacheUpdate, axes: Axes) -> list[ir.Value]:
    """The outputs that are the cache written here, in its own layout, and are said to be that."""
    assert joined.node is not None
    assert joined.past is not None
    assert joined.layout is not None
    cache = role_of(joined.past)
    graph = joined.node.graph
    if joined.node.op_type != "DYNAMIC_UPDATE_SLICE" or cache is None or graph is None:
        return []
    role = replace(cache, kind=cache.kind.removesuffix("_cache"))  # type: ignore[arg-type]
    found = []
    for value in graph.outputs:
        source, way = trace_layout(value)
        if source is joined.node.outputs[0] and role_of(value) == role:
            with contextlib.suppress(MatchFailure):
                if factors.through(way, axes) == _cache_axes(factors, joined.layout):
                    found.append(value)
    return found


def check_layouts(attention: Attention, k: CacheUpdate, v: CacheUpdate) -> None:
    """MatchFailure unless both caches have the layout that readers of ATTENTION will take them to have."""
    if k.past is None or v.past is None:
        return
    if k.past is v.past:
        fail("keys and values are in one cache", k.past)
    if k.layout != v.layout:
        fail(f"keys are cached as {k.layout}, values as {v.layout}", v.past)
    try:
        told = attention.layout
    except ModelError as error:
        fail(str(error), k.past)
    if told != k.layout:
        fail(f"the caches are joined as {k.layout}, but the contract says otherwise", k.past)


def through_scores(factors: Factors, scores: Scores, axes: Axes) -> tuple[Axes, Axes]:
    """The axes that the softmax sees, and those at the point where the mask is added."""
    at_mask = axes
    for node in scores.steps:
        if node.op_type in LAYOUT_OPS:
            axes = factors.through([node], axes)
        if node is scores.masked_by:
            at_mask = axes
    return axes, at_mask


def shared_tables(
    q: Rotation | None, k: Rotation | None, T: int, H: int
) -> tuple[ir.Value | None, ir.Value | None]:
    """cos and sin as they were before anything was reshaped for broadcasting."""
    if q is None or k is None:
        return None, None
    tables = []
    for mine, other in ((q.cos, k.cos), (q.sin, k.sin)):
        table = _table(mine, T, H)
        if table is not _table(other, T, H):
            fail("q and k are rotated by different tables", other)
        tables.append(table)
    return tables[0], tables[1]


def _table(value: ir.Value, T: int, H: int) -> ir.Value:
    source, chain = trace_layout(value)
    plain = all(node.op_type in RESHAPE_OPS for node in chain)
    return source if plain and math.prod(shape_of(source)) == T * H else value
