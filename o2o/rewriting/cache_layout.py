"""Layout of the KV caches among a graph's inputs and outputs: [B, N, T, H] or [B, T, N, H]."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, get_args

import numpy as np
import onnx_ir as ir

from o2o.contract import Layout, Role, role_of
from o2o.errors import ModelError
from o2o.model import Model, dims_of
from o2o.operators.attention import Attention, is_attention, takes_as_cache
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import constant_ints, producer_of
from o2o.rewriting.rewire import insert_after_input, insert_before_output

PERMUTATION = (0, 2, 1, 3)  # BNTH to BTNH, and back


class TransposedCaches(NamedTuple):
    """The number of inputs and outputs whose layout changed, and the number of all with a cache layout."""

    transposed: int
    total: int


def transpose_caches(model: Model, graph: ir.Graph, layout: Layout) -> TransposedCaches:
    """Give every KV cache among the inputs and outputs of `graph` one layout, in place.

    ATTENTION and DYNAMIC_UPDATE_SLICE work in either layout. Other users read the cache through a TRANSPOSE.

    Args:
        model: The model of `graph`.
        graph: Its caches have roles (`o2o.contract`), or are operands of ATTENTION.
        layout: BNTH for [1, K, S, H], BTNH for [1, S, K, H].

    Returns:
        The number of values transposed, and of all values with a cache layout.

    Raises:
        ModelError: A cache cannot be transposed: not four axes, or quantized by channel.
    """
    caches = _caches(graph)
    others = {value: role for value, role in caches.items() if role.layout != layout}
    for value, role in others.items():
        _check(value)
        if role.layout not in get_args(Layout):
            raise ModelError(
                f"the cache {value.name} has the layout {role.layout}: run legalize.onert.py last"
            )
    written = _transpose_writes(graph, others)
    for value, role in others.items():
        if value in written:
            pass
        elif value.is_graph_input():
            _transpose_input(graph, value)
        else:
            value = insert_before_output(
                model, graph, value, lambda op, inner: op.transpose(inner, PERMUTATION, name="transposed")
            )
        value.meta["role"] = replace(role, layout=layout)
    return TransposedCaches(len(others), len(caches))


def _caches(graph: ir.Graph) -> dict[ir.Value, Role]:
    """The cache inputs and key/value outputs of `graph`, with roles that give their layout."""
    caches: dict[ir.Value, Role] = {}
    for node in graph:
        if is_attention(node):
            attention = Attention.of(node)
            layer = len(caches) // 2
            for value, kind in ((attention.k_cache, "key_cache"), (attention.v_cache, "value_cache")):
                if value is not None:
                    if not value.is_graph_input():
                        raise ModelError(f"the cache {value.name} of {node.op_type} is not an input")
                    role = role_of(value) or Role(kind, layer)  # type: ignore[arg-type]
                    caches[value] = replace(role, layout=attention.layout)
    for value in (*graph.inputs, *graph.outputs):
        declared = role_of(value)
        if declared is not None and declared.layout is not None:
            caches[value] = declared
    return caches


def _check(value: ir.Value) -> None:
    if len(dims := dims_of(value) or ()) != 4:
        raise ModelError(f"the cache {value.name} has shape {list(dims)}, not four axes")
    quantization = value.meta.get("fields", {}).get("quantization")
    scale = getattr(quantization, "scale", None)
    if scale is not None and len(scale) > 1:
        raise ModelError(f"the cache {value.name} is quantized by channel")


def _permute_shape(value: ir.Value) -> None:
    """Give `value` the shape that it has in the other layout."""
    assert value.shape is not None
    value.shape = ir.Shape([value.shape[axis] for axis in PERMUTATION])
    fields = value.meta.get("fields", {})
    if (signature := fields.get("shapeSignature")) is not None:  # other values may share these fields
        value.meta["fields"] = fields | {"shapeSignature": signature[list(PERMUTATION)]}


def _transpose_input(graph: ir.Graph, value: ir.Value) -> None:
    """Transpose the input `value`. ATTENTION reads it directly; other users read it transposed back."""
    others = [use for use in value.uses() if not takes_as_cache(use.node, use.idx)]
    attentions = [use for use in value.uses() if use not in others]
    if others:
        op, inner = insert_after_input(graph, value)
    _permute_shape(value)
    if others:
        name = f"{value.name}_transposed"
        inner.replace_all_uses_with(op.transpose(value, PERMUTATION, name=name))
        for use in attentions:
            use.node.replace_input_with(use.idx, value)


def _transpose_writes(graph: ir.Graph, caches: dict[ir.Value, Role]) -> set[ir.Value]:
    """Transpose the caches that a DYNAMIC_UPDATE_SLICE writes and the graph returns.

    The operator writes transposed rows at a transposed start. Other users of its result read it transposed
    back. Returns the caches that it reads and writes.
    """
    transposed: set[ir.Value] = set()
    starts: dict[ir.Value, ir.Value] = {}
    for updated in caches:
        node = producer_of(updated, "DYNAMIC_UPDATE_SLICE")
        if node is None:
            continue
        cache, rows, start = node.inputs
        if cache not in caches or cache.is_graph_output() or len(cache.uses()) > 1:
            continue  # another user reads the cache before it is written
        assert rows is not None
        assert start is not None
        op = Builder(graph, before=node, prefix=f"{updated.name}/")
        if start not in starts:
            order = op.constant(PERMUTATION, "order", np.int32)
            starts[start] = op.node("GATHER", [start, order], [4], name="start", axis=0)
        node.replace_input_with(1, _transposed_rows(op, rows))
        node.replace_input_with(2, starts[start])
        uses = updated.uses()
        _permute_shape(cache)
        _permute_shape(updated)
        if uses:
            users = {use.node for use in uses}
            first = next(user for user in graph if user in users)
            back = Builder(graph, first, f"{updated.name}/").transpose(
                updated, PERMUTATION, name="transposed"
            )
            for use in uses:
                use.node.replace_input_with(use.idx, back)
        transposed |= {cache, updated}
    return transposed


def _transposed_rows(op: Builder, x: ir.Value) -> ir.Value:
    """`x` with its axes permuted. If an inverse TRANSPOSE computes `x`, this is its operand."""
    node = producer_of(x, "TRANSPOSE")
    if node is not None and tuple(constant_ints(node.inputs[1]) or ()) == PERMUTATION:
        assert node.inputs[0] is not None
        return node.inputs[0]
    return op.transpose(x, PERMUTATION, name="rows")
