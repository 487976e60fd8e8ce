"""Dead-code elimination: unused nodes, constants, loose tensors and graphs.

An operator needs what the graphs in its attributes use, too (ONNX).

Counterparts in `onnx_ir.passes.common`: `RemoveUnusedNodesPass` and `RemoveUnusedFunctionsPass`. Those know
ONNX operators. Circle has operators with side effects (ATTENTION writes its caches), constants that hold
other constants' quantization parameters, and graphs that operators run by number.
"""

from __future__ import annotations

import onnx_ir as ir

from o2o.model import Model, inner_graphs, operands, quantization_constants, remove_nodes
from o2o.operators.traits import has_side_effects


def live_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Return the nodes with side effects, the producers of outputs, and all nodes that these depend on.

    Args:
        graph: The graph.

    Returns:
        The nodes that dead-code elimination keeps.
    """
    known: dict[int, bool] = {}
    pending = [node for node in graph if has_side_effects(node, known)]
    pending += [node for value in graph.outputs if (node := value.producer()) is not None]
    live: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node not in live:
            live.add(node)
            pending += [p for value in operands(node) if (p := value.producer()) is not None]
    return live


def remove_dead_nodes(graph: ir.Graph) -> int:
    """Remove the nodes of `graph` that are not live. Constants stay: see `remove_dead_constants`.

    Args:
        graph: Changed in place.

    Returns:
        The number of nodes removed.
    """
    live = live_nodes(graph)
    dead = [node for node in graph if node not in live]
    remove_nodes(graph, dead)
    if (names := graph.meta.get("names")) is not None:  # see `builder.fresh_name`
        names -= {value.name for node in dead for value in node.outputs}
    return len(dead)


def remove_dead_constants(graph: ir.Graph) -> int:
    """Remove the constants of `graph` that no node, no output and no other constant's quantization uses.

    Args:
        graph: Changed in place.

    Returns:
        The number of constants removed.
    """
    pending = [*graph.inputs, *graph.outputs]
    for node in graph:
        pending += [*operands(node), *node.outputs]
    used: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) not in used:
            used.add(id(value))
            pending += quantization_constants(value).values()
    dead = [name for name, value in graph.initializers.items() if id(value) not in used]
    for name in dead:
        del graph.initializers[name]
    return len(dead)


def remove_dead_graphs(model: Model) -> int:
    """Remove the graphs that are not the first, have no signature, and are run by no graph that stays.

    Args:
        model: Changed in place.

    Returns:
        The number of graphs removed.
    """
    pending = [*model.graphs[:1], *(signature.graph for signature in model.signatures)]
    reachable: set[int] = set()
    while pending:
        graph = pending.pop()
        if id(graph) not in reachable:
            reachable.add(id(graph))
            pending += [inner for node in graph for inner in inner_graphs(node)]
    before = len(model.graphs)
    model.graphs = [graph for graph in model.graphs if id(graph) in reachable]
    return before - len(model.graphs)


def remove_dead_functions(model: Model) -> int:
    """Remove the functions of an ONNX model that no graph and no other function calls.

    Args:
        model: Changed in place.

    Returns:
        The number of functions removed.
    """
    before = len(model.functions)
    called: dict[ir.OperatorIdentifier, ir.Function] = {}
    pending = list(model.graphs)
    while pending:
        graph = pending.pop()
        for node in graph:
            pending += inner_graphs(node)
            function = model.functions.get(node.op_identifier())
            if function is not None and function.identifier() not in called:
                called[function.identifier()] = function
                pending.append(function.graph)
    model.functions = {key: function for key, function in model.functions.items() if key in called}
    return before - len(model.functions)


def remove_loose_values(model: Model) -> int:
    """Remove the tensors that no operator touches (`meta["loose"]`) and that no signature names.

    Args:
        model: Changed in place.

    Returns:
        The number of tensors removed from the graphs of `model`.
    """
    named = {id(v) for s in model.signatures for v in (*s.inputs.values(), *s.outputs.values())}
    removed = 0
    for graph in model.graphs:
        loose = graph.meta.get("loose", ())
        graph.meta["loose"] = [value for value in loose if id(value) in named]
        removed += len(loose) - len(graph.meta["loose"])
    return removed
