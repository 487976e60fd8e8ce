"""Moving a region of a graph into a graph of its own, with a STABLEHLO_COMPOSITE in its place.

A composite says what a region means, by a name and attributes that accelerators know, and holds the region
itself (its decomposition) for the others, who run it as it is. StableHLO's specification: `composite`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import flatbuffers.flexbuffers
import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_constant
from o2o.model import DOMAIN, Model, quantization_constants
from o2o.rewriting.builder import fresh_name
from o2o.rewriting.dead_code_elimination import has_side_effects
from o2o.rewriting.matchers import fail
from o2o.rewriting.topological_sort import topological_sort

COMPOSITE = "STABLEHLO_COMPOSITE"
_DECOMPOSITION = "decompositionSubgraphIndex"  # whose value is a graph in the IR


def nodes_between(inputs: Collection[ir.Value], outputs: Collection[ir.Value]) -> list[ir.Node]:
    """The nodes that compute `outputs` from `inputs`, in no order, with what needs no input."""
    found: dict[ir.Node, None] = {}
    waiting = list(outputs)
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value not in inputs and node is not None and node not in found:
            found[node] = None
            waiting += [v for v in node.inputs if v is not None]
    return list(found)


def outline(
    model: Model,
    graph: ir.Graph,
    nodes: Collection[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, float | int | bool | str] | None = None,
    version: int = 1,
) -> ir.Node:
    """Move `nodes` of `graph` into a new graph of `model`, and return the composite `name` in their place.

    inputs, outputs: the values that go in and come out, in the order of the composite's operands; outputs
    keep names, roles and uses. Constants that only the region uses move along; for those that others use,
    too, it gets a tensor of its own over the same bytes. attributes: written as a FlexBuffer; floats as
    float32, which is how readers look at them.
    MatchFailure, and changes nothing, when a value crosses the border unsaid, when a node has side effects,
    when what comes out goes in again, or when an input is quantised by other tensors (by block).
    """
    region = set(nodes)
    span = list(graph)
    places = [place for place, node in enumerate(span) if node in region]
    assert len(places) == len(region), "the region is not of this graph"
    ordered = [span[place] for place in places]
    span = span[places[0] : places[-1] + 1]
    _check(ordered, inputs, outputs)
    behind = _behind(span, region)
    inner = ir.Graph([], [], nodes=[], name=_graph_name(model, name), opset_imports={DOMAIN: 1})
    composite = _composite(inner, inputs, outputs, name, attributes or {}, version)
    graph.insert_after(ordered[-1], composite)
    _let_users_see(model, region, outputs, composite.outputs)
    graph.remove(ordered)
    inner.extend(ordered)
    _take_inputs(inner, inputs)
    _take_constants(graph, inner, region)
    inner.outputs.extend(outputs)
    model.graphs.append(inner)
    _call_apart(graph, inner)
    if behind:  # users of one result that came before what makes another
        topological_sort(graph)
    return composite


def decompositions(model: Model) -> set[ir.Graph]:
    """The graphs of `model` that are there for what a composite stands for."""
    nodes = (node for graph in model.graphs for node in graph if node.op_type == COMPOSITE)
    return {node.attributes[_DECOMPOSITION].as_graph() for node in nodes}


def _check(region: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
    inside = set(region)
    for operand in inputs:
        if operand.producer() in inside:
            fail("the region makes it itself", operand)
        if _references(operand):
            fail("its quantization names other tensors, which cannot go in with it", operand)
    for node in region:
        if has_side_effects(node):
            fail(f"{node.op_type} does more than computing", node.outputs[0] if node.outputs else None)
        for value in (*node.inputs, *(v for u in node.inputs if u is not None for v in _references(u))):
            if value is None or value in inputs or value.producer() in inside or is_constant(value):
                continue
            fail(f"{node.op_type} in the region needs it, too", value)
        for value in node.outputs:
            seen = value.is_graph_output() or any(use.node not in inside for use in value.uses())
            if seen and value not in outputs:
                fail("it is used outside of the region, too", value)
    for value in outputs:
        if value.producer() not in inside:
            fail("the region does not make it", value)


def _behind(span: Sequence[ir.Node], region: Collection[ir.Node]) -> set[ir.Node]:
    """The nodes of `span` outside of the region that need something of it. Fails when it needs them, too.

    span: the graph's nodes in order, from the region's first to its last.
    """
    behind: set[ir.Node] = set()
    for node in span:
        before = {v.producer() for v in node.inputs if v is not None}
        if node not in region:
            if any(producer in region or producer in behind for producer in before):
                behind.add(node)
        elif before & behind:
            fail(f"what comes out of the region goes into {node.op_type} in it", node.outputs[0])
    return behind


def _composite(
    inner: ir.Graph,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, float | int | bool | str],
    version: int,
) -> ir.Node:
    told = {
        key: np.float32(item).item() if isinstance(item, float) else item for key, item in attributes.items()
    }
    packed = flatbuffers.flexbuffers.Dumps(told)  # float32 numbers take 4 bytes there
    options = [
        ir.AttrString("name", name),
        ir.AttrGraph(_DECOMPOSITION, inner),
        ir.AttrInt64s("compositeAttributes", list(packed)),
        ir.AttrInt64("compositeAttributesFormat", 0),
        ir.AttrInt64("version", version),
    ]
    results = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in outputs]
    for result, value in zip(results, outputs, strict=True):
        result.meta.update(value.meta)
        value.meta.pop("role", None)
    return ir.Node(DOMAIN, COMPOSITE, list(inputs), options, outputs=results, version=1)


def _let_users_see(
    model: Model, region: Collection[ir.Node], old: Sequence[ir.Value], new: Sequence[ir.Value]
) -> None:
    for inside, outside in zip(old, new, strict=True):
        model.replace(inside, outside)
        for use in list(inside.uses()):
            if use.node not in region:
                use.node.replace_input_with(use.idx, outside)


def _take_inputs(inner: ir.Graph, inputs: Sequence[ir.Value]) -> None:
    for value in inputs:
        own = _like(value)
        for node in inner:
            for index, operand in enumerate(node.inputs):
                if operand is value:
                    node.replace_input_with(index, own)
        inner.inputs.append(own)


def _take_constants(graph: ir.Graph, inner: ir.Graph, region: Collection[ir.Node]) -> None:
    taken: dict[int, ir.Value] = {}

    def take(value: ir.Value) -> ir.Value:
        if id(value) in taken:
            return taken[id(value)]
        shared = value.is_graph_output() or any(use.node not in region for use in value.uses())
        own = value
        if shared or value.name is None or _is_referred_to(graph, value):
            own = _like(value)
            own.const_value = value.const_value
        else:
            del graph.initializers[value.name]
        taken[id(value)] = taken[id(own)] = own
        references = quantization_constants(value)
        if references:
            own.meta["quantization_constants"] = {field: take(other) for field, other in references.items()}
        own.name = own.name if own is value else fresh_name(inner, f"{inner.name}/{value.name}")
        inner.register_initializer(own)
        return own

    for node in inner:
        for index, value in enumerate(node.inputs):
            if value is not None and is_constant(value):
                own = take(value)
                if own is not value:
                    node.replace_input_with(index, own)


def _like(value: ir.Value) -> ir.Value:
    own = ir.Value(name=value.name, shape=value.shape, type=value.type)
    own.meta.update({key: item for key, item in value.meta.items() if key not in ("role", "name")})
    return own


def _references(value: ir.Value) -> Collection[ir.Value]:
    found: Mapping[str, ir.Value] = quantization_constants(value)
    return found.values()


def _is_referred_to(graph: ir.Graph, value: ir.Value) -> bool:
    """Whether the quantization of another constant names `value`."""
    return any(other is value for v in graph.initializers.values() for other in _references(v))


def _graph_name(model: Model, name: str) -> str:
    taken = {graph.name for graph in model.graphs}
    count = 0
    while (found := f"{name}.impl_{count}") in taken:
        count += 1
    return found


def _call_apart(graph: ir.Graph, inner: ir.Graph) -> None:
    """What graph and decomposition call alike gets a name of its own inside: quantizers ask for that."""
    for value in (*inner.inputs, *inner.outputs):
        value.name = fresh_name(inner, f"{inner.name}/{value.name}")
