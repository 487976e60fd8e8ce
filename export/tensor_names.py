"""Readable tensor names. TICO drops module names, but the name of a weight shows which module reads it.

The output of the operator that reads `model.layers.0.self_attn.q_proj.weight` becomes
`model.layers.0.self_attn.q_proj`. An operator between two such operators belongs to their common module:
between `...0.self_attn.v_proj` and `...0.self_attn.o_proj`, TICO's `mul_9` becomes
`model.layers.0.self_attn/mul_9`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir as ir

from o2o.rewriting.builder import unique_name


def rename_tensors(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the values of a graph. Every name is unique.

    Args:
        graph: A graph that TICO has written; changed in place.
        inputs: The names of its inputs.
        outputs: The names of its outputs.
    """
    for value in _values(graph):
        value.name = (value.name or "").rpartition("::")[2]
    weights = dict(zip(graph.inputs, inputs, strict=True))
    modules = {node: _module(node, weights) for node in graph}

    names: dict[ir.Value, str] = {}
    for node, scope in zip(graph, _scopes(list(modules.values())), strict=True):
        for value in node.outputs:
            names[value] = modules[node] or "/".join(filter(None, (scope, value.name)))
    names |= weights | dict(zip(graph.outputs, outputs, strict=True))

    taken = set(inputs) | set(outputs)
    for value in _values(graph):
        name = names.get(value, value.name or "value")
        if value not in weights and not value.is_graph_output():
            name = unique_name(name, taken)
        value.name = name


def _values(graph: ir.Graph) -> list[ir.Value]:
    results = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *results]


def _module(node: ir.Node, weights: dict[ir.Value, str]) -> str | None:
    """The module whose `weight` this node reads."""
    for value in node.inputs:
        if value is not None and weights.get(value, "").endswith(".weight"):
            return weights[value].removesuffix(".weight")
    return None


def _scopes(modules: Sequence[str | None]) -> list[str]:
    """For each node, the common module of the nearest named nodes before and after it."""
    before = _latest(modules)
    after = _latest(modules[::-1])[::-1]
    return [_shared(a, b) for a, b in zip(before, after, strict=True)]


def _latest(modules: Sequence[str | None]) -> list[str | None]:
    """For each node, the last module named up to it."""
    latest, result = None, []
    for module in modules:
        latest = module or latest
        result.append(latest)
    return result


def _shared(a: str | None, b: str | None) -> str:
    """`model.layers.0` for `model.layers.0.self_attn.o_proj` and `model.layers.0.input_layernorm`."""
    if a is None or b is None:
        return ""
    parts = zip(a.split("."), b.split("."), strict=False)
    return ".".join(left for left, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], parts))
