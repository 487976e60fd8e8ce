"""Graph outputs that return the rows of a KV cache."""

from __future__ import annotations

import onnx_ir as ir

from o2o.contract import Role
from o2o.model import Model
from o2o.rewriting.builder import fresh_name
from o2o.rewriting.rewire import replace_graph_output


def add_rows_output(
    model: Model, graph: ir.Graph, cache: ir.Value, rows: ir.Value, role: Role | None
) -> None:
    """Append the rows of a cache to the outputs of a graph and its signatures.

    Where the cache itself is an output, because an operator updates it in place, its rows take that place.

    Args:
        model: The model of `graph`.
        graph: The graph that takes `cache` as input; changed in place.
        cache: The cache. `past_key_0` names the output `present_key_0`, other names get `_out` appended.
        rows: New rows, or the whole updated cache.
        role: The role of `rows`; None when the cache has none.
    """
    if role is not None:
        rows.meta["role"] = role
    if cache.is_graph_output():
        replace_graph_output(model, graph, cache, rows)
        return
    stem = cache.name or "cache"
    name = stem.replace("past_", "present_", 1) if stem.startswith("past_") else f"{stem}_out"
    taken = {name for signature in model.signatures_of(graph) for name in signature.outputs}
    rows.name = fresh_name(graph, name)
    while rows.name in taken:
        rows.name = fresh_name(graph, name)
    graph.outputs.append(rows)
    for signature in model.signatures_of(graph):
        signature.outputs[rows.name] = rows
