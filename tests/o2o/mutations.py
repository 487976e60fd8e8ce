"""Random changes to graphs that a fusion might overlook: a constant, an operand, an option, an output.

A mutant may compute the same, something else, or nothing (`values_of` returns None). A fusion must preserve
its meaning.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from o2o.model import Model, shape_of
from o2o.operators import reference
from tests.o2o.graphs import Graph

OPTIONS = {
    "adjointLhs": (0, 1),
    "adjointRhs": (0, 1),
    "keepDims": (0, 1),
    "axis": (-2, -1, 0, 1, 2, 3),
    "fusedActivationFunction": (0, 1, 3),
    "beta": (0.5, 1.0, 2.0),
}


def mutate(model: Model, generator: random.Random) -> str:
    """Change one thing in the first graph of `model`; what, or "" for nothing (it did not fit)."""
    mutation = generator.choice([_constant, _swap, _rewire, _rewire, _option, _output, _multiply])
    return mutation(model.graphs[0], generator)


def _constant(graph: ir.Graph, generator: random.Random) -> str:
    """Other numbers in a constant."""
    collected = [v for v in graph.initializers.values() if v.const_value is not None and v.const_value.size]
    if not collected:
        return ""
    value = generator.choice(collected)
    array = value.const_value.numpy().copy()  # type: ignore[union-attr]
    flat = array.reshape(-1)
    place, other = generator.randrange(flat.size), generator.randrange(flat.size)
    if array.dtype.kind == "f":
        which = generator.randrange(4)
        if which == 0:
            flat[place] = generator.choice([0, 1, -1, flat[place] + 0.5])
        elif which == 1:
            flat *= generator.choice([0.5, 2, -1])
        elif which == 2:
            flat[:] = flat[::-1].copy()
        else:
            flat[:] = 0
    else:
        which = generator.randrange(2)
        flat[place] = flat[other] if which else flat[place] + generator.choice([-1, 1])
        if which:
            flat[other] = value.const_value.numpy().reshape(-1)[place]  # type: ignore[union-attr]
    value.const_value = ir.Tensor(array, name=value.name)
    return f"constant {value.name}"


def _swap(graph: ir.Graph, generator: random.Random) -> str:
    """Two operands of a node in each other's place."""
    node = generator.choice(list(graph))
    if len(node.inputs) < 2:
        return ""
    first, second = generator.sample(range(len(node.inputs)), 2)
    one, other = node.inputs[first], node.inputs[second]
    if one is None or other is None or one.dtype != other.dtype:
        return ""
    node.replace_input_with(first, other)
    node.replace_input_with(second, one)
    return f"operands of {_name(node)}"


def _rewire(graph: ir.Graph, generator: random.Random) -> str:
    """Another value of the same shape and dtype as an operand."""
    nodes = list(graph)
    node = generator.choice(nodes)
    before = set(nodes[: nodes.index(node)])
    values = [*graph.inputs, *graph.initializers.values(), *(v for n in nodes for v in n.outputs)]
    place = generator.randrange(len(node.inputs))
    old = node.inputs[place]
    if old is None:
        return ""
    fitting = [
        value
        for value in values
        if value is not old
        and (value.dtype, shape_of(value)) == (old.dtype, shape_of(old))
        and (value.producer() is None or value.producer() in before)
    ]
    if not fitting:
        return ""
    new = generator.choice(fitting)
    node.replace_input_with(place, new)
    return f"operand {place} of {_name(node)}, {old.name}, is {new.name}"


def _option(graph: ir.Graph, generator: random.Random) -> str:
    node = generator.choice(list(graph))
    names = [name for name in OPTIONS if name in node.attributes]
    if not names:
        return ""
    name = generator.choice(names)
    number = generator.choice(OPTIONS[name])
    node.attributes[name] = ir.convenience.convert_attribute(name, number)
    return f"{name} of {_name(node)} is {number}"


def _output(graph: ir.Graph, generator: random.Random) -> str:
    """An internal value becomes an output."""
    value = generator.choice([*graph.inputs, *(v for node in graph for v in node.outputs)])
    if value in graph.outputs:
        return ""
    graph.outputs.append(value)
    return f"{value.name} is an output"


def _multiply(graph: ir.Graph, generator: random.Random) -> str:
    """A multiplication by a number, for one user of a value or for all."""
    value = generator.choice([v for node in graph for v in node.outputs])
    uses = [(use.node, use.idx) for use in value.uses()]
    if value.dtype != ir.DataType.FLOAT or not uses:
        return ""
    more = Graph("")
    more.ir = graph
    number = generator.choice([2, -1, 1, 0.5])
    product = more.op("MUL", [value, more.constant("number", np.float32(number))], shape_of(value))
    for node, place in generator.sample(uses, 1) if generator.random() < 0.5 else uses:
        node.replace_input_with(place, product)
    graph.sort()
    return f"{value.name} times {number}"


def _name(node: ir.Node) -> str:
    return f"{node.op_type} {node.outputs[0].name}"


def values_of(graph: ir.Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """The outputs of `graph`, in order; None when a value has another shape than it says, or none at all.

    Behind them come caches as they are afterwards, under the names that outputs have for them.
    """
    known = {value: feeds[value.name or ""].copy() for value in graph.inputs}
    evaluation = reference._Evaluation(known)
    try:
        with np.errstate(all="ignore"):
            for node in graph:
                evaluation.node(node)
                if any(evaluation.known[value].shape != shape_of(value) for value in node.outputs):
                    return None
            collected = {value.name or "": evaluation.value(value).copy() for value in graph.outputs}
    except reference.NotEvaluable:
        return None
    caches = {(value.name or "").replace("past_", "present_"): array for value, array in known.items()}
    return collected | {name: array for name, array in caches.items() if name not in collected}
