"""Giving the key/value caches of a graph another layout."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import onnx_ir as ir

from o2o.contract import Layout, Role, role_of
from o2o.errors import ModelError
from o2o.model import Model, shape_of
from o2o.operators.attention import Attention, is_attention, takes_as_cache
from o2o.rewriting.builder import Builder
from o2o.rewriting.matchers import constant_ints, producer_of
from o2o.rewriting.rewire import detach_input, detach_output

SWAP = (0, 2, 1, 3)  # BNTH to BTNH, and back


def transpose_caches(model: Model, graph: ir.Graph, layout: Layout) -> tuple[int, int]:
    """Give the caches, keys and values among the ends of `graph` this layout; how many it was, of how many.

    Who uses them sees them as before, through a TRANSPOSE. ATTENTION and DYNAMIC_UPDATE_SLICE need none:
    they write in either layout. Raises ModelError for caches that cannot be turned.
    """
    caches = _caches(graph)
    todo = {value: role for value, role in caches.items() if role.layout != layout}
    for value, role in todo.items():
        _check(value)
        if role.layout not in get_args(Layout):
            raise ModelError(
                f"the cache {value.name} is {role.layout}, as legalize.onert.py makes them, last"
            )
    written = _turn_writes(graph, todo)
    for value, role in todo.items():
        if value in written:
            pass
        elif value.is_graph_input():
            _turn_input(graph, value)
        else:
            value = detach_output(
                model, graph, value, lambda op, inner: op.transpose(inner, SWAP, name="turned")
            )
        value.meta["role"] = replace(role, layout=layout)
    return len(todo), len(caches)


def _caches(graph: ir.Graph) -> dict[ir.Value, Role]:
    """The cache inputs and key/value outputs of `graph`, with roles that say their layout."""
    found: dict[ir.Value, Role] = {}
    for node in graph:
        if is_attention(node):
            attention = Attention.of(node)
            layer = len(found) // 2
            for value, kind in ((attention.k_cache, "key_cache"), (attention.v_cache, "value_cache")):
                if value is not None:
                    if not value.is_graph_input():
                        raise ModelError(f"the cache {value.name} of {node.op_type} is no input")
                    role = role_of(value) or Role(kind, layer)  # type: ignore[arg-type]
                    found[value] = replace(role, layout=attention.layout)
    for value in (*graph.inputs, *graph.outputs):
        told = role_of(value)
        if told is not None and told.layout is not None:
            found[value] = told
    return found


def _check(value: ir.Value) -> None:
    if len(shape_of(value)) != 4:
        raise ModelError(f"the cache {value.name} has shape {list(shape_of(value))}, not four axes")
    quantization = value.meta.get("fields", {}).get("quantization")
    scale = getattr(quantization, "scale", None)
    if scale is not None and len(scale) > 1:
        raise ModelError(f"the cache {value.name} is quantised by channel")


def _swap(value: ir.Value) -> None:
    """Give `value` the shape that it has when it is turned."""
    value.shape = ir.Shape([shape_of(value)[axis] for axis in SWAP])
    fields = value.meta.get("fields", {})
    if (signature := fields.get("shapeSignature")) is not None:  # others may have the same fields
        value.meta["fields"] = fields | {"shapeSignature": signature[list(SWAP)]}


def _turn_input(graph: ir.Graph, value: ir.Value) -> None:
    """Swap the axes of the input `value`; its users but ATTENTION see it as before."""
    others = [use for use in value.uses() if not takes_as_cache(use.node, use.idx)]
    attentions = [use for use in value.uses() if use not in others]
    given_out = value.is_graph_output()
    if others or given_out:
        if given_out:
            raise ModelError(f"the cache {value.name} is also an output")
        op, inner = detach_input(graph, value)
    _swap(value)
    if others:
        inner.replace_all_uses_with(op.transpose(value, SWAP, name=f"{value.name}_turned"))
        for use in attentions:
            use.node.replace_input_with(use.idx, value)


def _turn_writes(graph: ir.Graph, caches: dict[ir.Value, Role]) -> set[ir.Value]:
    """Swap the axes of those of `caches` that a DYNAMIC_UPDATE_SLICE writes and gives out: which these are.

    It writes turned rows at a turned start; who else uses what comes out sees it as before.
    """
    found: set[ir.Value] = set()
    starts: dict[ir.Value, ir.Value] = {}
    for updated in caches:
        node = producer_of(updated, "DYNAMIC_UPDATE_SLICE")
        if node is None:
            continue
        cache, rows, start = node.inputs
        if cache not in caches or cache.is_graph_output() or len(cache.uses()) > 1:
            continue  # another sees what was in it before
        assert rows is not None
        assert start is not None
        op = Builder(graph, before=node, prefix=f"{updated.name}/")
        if start not in starts:
            order = op.constant(SWAP, "order", np.int32)
            starts[start] = op.node("GATHER", [start, order], [4], name="start", axis=0)
        node.replace_input_with(1, _turned(op, rows))
        node.replace_input_with(2, starts[start])
        uses = updated.uses()
        _swap(cache)
        _swap(updated)
        if uses:
            users = {use.node for use in uses}
            before = next(user for user in graph if user in users)
            view = Builder(graph, before, f"{updated.name}/").transpose(updated, SWAP, name="turned")
            for use in uses:
                use.node.replace_input_with(use.idx, view)
        found |= {cache, updated}
    return found


def _turned(op: Builder, x: ir.Value) -> ir.Value:
    """`x` with its axes swapped: what it was made of, where that was swapping them."""
    node = producer_of(x, "TRANSPOSE")
    if node is not None and tuple(constant_ints(node.inputs[1]) or ()) == SWAP:
        assert node.inputs[0] is not None
        return node.inputs[0]
    return op.transpose(x, SWAP, name="rows")
