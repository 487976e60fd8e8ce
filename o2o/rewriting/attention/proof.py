"""Named axes through an attention block, from its projections to its core."""

from __future__ import annotations

import contextlib
import math
from typing import get_args

import onnx_ir as ir

from o2o.contract import Layout, role_of
from o2o.errors import ModelError
from o2o.model import attribute, shape_of
from o2o.operators.attention import Attention
from o2o.operators.core_attention import CoreAttention
from o2o.operators.traits import RESHAPE_OPS
from o2o.rewriting.attention.parts import CacheUpdate, Projection
from o2o.rewriting.axes import Axes, Factors, trace_layout
from o2o.rewriting.matchers import MatchFailure, fail, single_user
from o2o.rewriting.rope import Rotation


def factors_of(core: CoreAttention, q: Projection, k: Projection, v: Projection) -> Factors:
    """Return the sizes of a block: T tokens, S keys, K key heads, G query heads per key head, head dim H.

    Args:
        core: The core of the block.
        q: The projection of q.
        k: The projection of k.
        v: The projection of v.

    Returns:
        The sizes T, S, K, G and H.

    Raises:
        MatchFailure: The projections are not those of these heads, or there are several batches.
    """
    if any(dim != 1 for dim in shape_of(q.x)[:-2]):
        fail("ATTENTION takes one batch", q.x)
    sizes = {"B": 1, "T": core.T, "S": core.S, "K": core.K, "G": core.N // core.K, "H": core.H}
    for projection, heads in ((q, core.N), (k, core.K), (v, core.K)):
        if shape_of(projection.w)[0] != heads * core.H:
            fail(f"a projection does not have {heads} heads of {core.H}", projection.w)
    return Factors(sizes)


def projection_axes(factors: Factors, projection: Projection, tokens: str, heads: str) -> Axes:
    """Return the axes of a projection's result.

    Args:
        factors: The sizes of the block.
        projection: The projection.
        tokens: The factor of its rows, `T` or `S`.
        heads: The factors of its columns, `KGH` or `KH`.

    Returns:
        The axes of [1, T, N*H].
    """
    return flat_axes(factors, projection.node.outputs[0], tokens, heads)


def flat_axes(factors: Factors, value: ir.Value, tokens: str, heads: str) -> Axes:
    """Return the axes of a value with one row per token and its heads side by side.

    Args:
        factors: The sizes of the block.
        value: [.., T, N*H].
        tokens: The factor of its rows, `T` or `S`.
        heads: The factors of its columns, `KGH` or `KH`.

    Returns:
        Its axes.

    Raises:
        MatchFailure: It has another shape.
    """
    shape = shape_of(value)
    axes = factors.axes(*[()] * (len(shape) - 2), tokens, heads)
    if len(shape) < 2 or factors.shape(axes) != shape:
        fail(f"a projection of {factors.sizes} should be {list(factors.shape(axes))}", value)
    return axes


def rotated_axes(
    factors: Factors,
    projection: Projection,
    rotation: Rotation | None,
    layout: list[ir.Node],
    tokens: str,
    heads: str,
) -> Axes:
    """Return the axes of q or new k, followed from its projection through its rotation.

    Args:
        factors: The sizes of the block.
        projection: The projection of q or k.
        rotation: Its rotation, or None.
        layout: The layout operators after the rotation.
        tokens: The factor of the projection's rows.
        heads: The factors of its columns.

    Returns:
        The axes after `layout`.

    Raises:
        MatchFailure: The rotation does not go over H, or its tables differ by head.
    """
    axes = projection_axes(factors, projection, tokens, heads)
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
                f"a rotation table should be {list(wanted)}: one row per token, the same for all heads",
                table,
            )
    return factors.through(layout, axes)


def cache_axes(factors: Factors, update: CacheUpdate, axes: Axes, core: ir.Node) -> Axes:
    """Return the axes after a cache update, whose token axis is the cache's.

    Args:
        factors: The sizes of the block.
        update: The cache update; its `axis`, `layout` and `cache_outputs` are set.
        axes: The axes of the new rows.
        core: The core of the block. Nothing else may read a concatenated cache.

    Returns:
        The axes of the updated cache.

    Raises:
        MatchFailure: The cache does not grow along its tokens alone, or has no known layout.
    """
    if update.node is None:
        return axes
    output = update.node.outputs[0]
    after, new = shape_of(output), shape_of(update.node.inputs[1])  # type: ignore[arg-type]
    grown = [axis for axis in range(len(after)) if after[axis] != new[axis]]
    if not grown and ("S",) in axes:  # as many tokens as the cache has rows
        grown = [axes.index(("S",))]
    if len(grown) != 1 or axes[grown[0]] not in ((), ("S",)):
        fail("the cache does not grow along its tokens alone", output)
    (update.axis,) = grown
    if update.node.op_type == "CONCATENATION":
        if attribute(update.node, "axis", 0) % len(after) != update.axis:
            fail("the cache is not concatenated along its tokens", output)
        # another reader would see the cache after ATTENTION has written it
        while {use.node for use in output.uses()} != {core} or output.is_graph_output():
            output = single_user(output, "the updated cache").outputs[0]
    axes = (*axes[: update.axis], ("S",), *axes[update.axis + 1 :])
    past = shape_of(update.node.inputs[0])  # type: ignore[arg-type]
    cache = Factors({**factors.sizes, "S": past[update.axis]})
    for layout in get_args(Layout):
        past_axes = _layout_axes(cache, layout)
        if cache.shape(past_axes) != shape_of(update.past):  # type: ignore[arg-type]
            continue
        if cache.through(update.path, past_axes) == cache.axes(*axes):
            update.layout = layout
            update.cache_outputs = _cache_outputs(factors, update, axes)
            return axes
    fail("the cache is neither [1, K, S, H] nor [1, S, K, H]", output)


def _layout_axes(factors: Factors, layout: Layout) -> Axes:
    return factors.axes(*({"B": (), "N": "K", "T": "S", "H": "H"}[axis] for axis in layout))


def _cache_outputs(factors: Factors, update: CacheUpdate, axes: Axes) -> list[ir.Value]:
    """The outputs that are the updated cache, in the layout of the cache, also according to their roles."""
    assert update.node is not None
    assert update.past is not None
    assert update.layout is not None
    cache = role_of(update.past)
    graph = update.node.graph
    if update.node.op_type != "DYNAMIC_UPDATE_SLICE" or cache is None or graph is None:
        return []
    role = cache.output_role
    outputs = []
    for value in graph.outputs:
        source, path = trace_layout(value)
        if source is update.node.outputs[0] and role_of(value) == role:
            with contextlib.suppress(MatchFailure):
                if factors.through(path, axes) == _layout_axes(factors, update.layout):
                    outputs.append(value)
    return outputs


def check_layouts(attention: Attention, k: CacheUpdate, v: CacheUpdate) -> None:
    """Check that readers of ATTENTION will infer the layout that both caches have.

    Args:
        attention: The operands.
        k: The update of the key cache.
        v: The update of the value cache.

    Raises:
        MatchFailure: The layouts differ, or a reader would infer another one from shape and role.
    """
    if k.past is None or v.past is None:
        return
    if k.past is v.past:
        fail("keys and values are in one cache", k.past)
    if k.layout != v.layout:
        fail(f"keys are cached as {k.layout}, values as {v.layout}", v.past)
    try:
        inferred = attention.layout
    except ModelError as error:
        fail(str(error), k.past)
    if inferred != k.layout:
        fail(f"the caches are updated as {k.layout}, but the contract says otherwise", k.past)


def shared_tables(
    q: Rotation | None, k: Rotation | None, T: int, H: int
) -> tuple[ir.Value | None, ir.Value | None]:
    """Return the rotation tables that q and k share, before any reshape for broadcasting.

    Args:
        q: The rotation of q, or None.
        k: The rotation of k, or None.
        T: The number of tokens.
        H: The head dimension.

    Returns:
        cos and sin, or None and None without a rotation.

    Raises:
        MatchFailure: q and k are rotated by different tables.
    """
    if q is None or k is None:
        return None, None
    tables = []
    for q_table, k_table in ((q.cos, k.cos), (q.sin, k.sin)):
        table = _table(q_table, T, H)
        if table is not _table(k_table, T, H):
            fail("q and k are rotated by different tables", k_table)
        tables.append(table)
    return tables[0], tables[1]


def _table(value: ir.Value, T: int, H: int) -> ir.Value:
    source, chain = trace_layout(value)
    plain = all(node.op_type in RESHAPE_OPS for node in chain)
    return source if plain and math.prod(shape_of(source)) == T * H else value
