"""`gc.py`."""

from __future__ import annotations

import argparse
from collections.abc import Hashable

import onnx_ir as ir

from o2o.cli.text import counted
from o2o.filters.base import Filter
from o2o.formats.tensors import storage_key
from o2o.model import Model
from o2o.rewriting.dead_code_elimination import inner_graphs, remove_dead_constants, remove_dead_nodes


class Gc(Filter):
    """Remove what nothing needs: operators, constants, tensors and subgraphs.

        x -+- ADD ------- y            x --- ADD --- y
           +- MUL --- (unused)   =>
        w (unused)

    Operators stay when an output needs them or when they have side effects, as ATTENTION has on caches.
    Subgraphs stay when they are the first, have a signature, or are run by an operator that stays.
    Inputs and outputs all stay.
    Constants that share their bytes go on sharing them. Says what went.
    Refuses nothing: a model in which everything is needed passes unchanged.
    """

    name = "gc.py"
    usage_example = "gc.py < model.circle > smaller.circle"

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        before, graphs = stored_bytes(model), len(model.graphs)
        loose = sum(len(graph.meta.get("loose", ())) for graph in model.graphs)
        nodes = sum(remove_dead_nodes(graph) for graph in model.graphs)
        model.graphs = reachable(model)
        constants = sum(len(remove_dead_constants(graph)) for graph in model.graphs)
        named = {id(v) for s in model.signatures for v in (*s.inputs.values(), *s.outputs.values())}
        for graph in model.graphs:
            graph.meta["loose"] = [value for value in graph.meta.get("loose", ()) if id(value) in named]
            loose -= len(graph.meta["loose"])
        removed = [
            (nodes, "operator"),
            (constants, "constant"),
            (loose, "loose tensor"),
            (graphs - len(model.graphs), "subgraph"),
        ]
        told = ", ".join(counted(number, noun) for number, noun in removed if number)
        freed = before - stored_bytes(model)
        self.say(f"removed {told}; {freed:,} bytes of constants" if told else "everything is needed")


def reachable(model: Model) -> list[ir.Graph]:
    """The graphs of `model`, in order, that are its first, have a signature or are run by one of these."""
    waiting = [*model.graphs[:1], *(signature.graph for signature in model.signatures)]
    seen: set[int] = set()
    while waiting:
        graph = waiting.pop()
        if id(graph) not in seen:
            seen.add(id(graph))
            waiting += [inner for node in graph for inner in inner_graphs(node)]
    return [graph for graph in model.graphs if id(graph) in seen]


def stored_bytes(model: Model) -> int:
    """How many bytes the constants of `model` take in a file, where each storage counts once."""
    sizes: dict[Hashable, int] = {}
    for graph in model.graphs:
        for value in (*graph.inputs, *graph.initializers.values(), *graph.meta.get("loose", ())):
            if value.const_value is not None:
                sizes[storage_key(value.const_value)] = value.const_value.nbytes
    return sum(sizes.values())


main = Gc.main
