"""Outlining: a region of a graph becomes a graph of its own, and a STABLEHLO_COMPOSITE takes its place.

A composite names a computation, so that accelerators can run it as one operator. The region
itself is its decomposition, for every other runtime. Source: `composite` in StableHLO's specification.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import flatbuffers.flexbuffers
import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import is_constant
from o2o.model import DOMAIN, Model, quantization_constants
from o2o.operators.traits import has_side_effects
from o2o.rewriting.builder import fresh_name
from o2o.rewriting.matchers import fail
from o2o.rewriting.topological_sort import topological_sort

COMPOSITE = "STABLEHLO_COMPOSITE"
_DECOMPOSITION = "decompositionSubgraphIndex"  # in the IR its value is a graph


def nodes_between(inputs: Collection[ir.Value], outputs: Collection[ir.Value]) -> list[ir.Node]:
    """Return the nodes that compute `outputs` from `inputs`, in no particular order.

    Args:
        inputs: Where to stop.
        outputs: Where to start.

    Returns:
        All producers between them, including the producers of other operands.
    """
    nodes: dict[ir.Node, None] = {}
    pending = list(outputs)
    while pending:
        value = pending.pop()
        node = value.producer()
        if value not in inputs and node is not None and node not in nodes:
            nodes[node] = None
            pending += [v for v in node.inputs if v is not None]
    return list(nodes)


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
    """Move a region into a new graph of `model`, and put a composite in its place.

    Constants that only the region uses move to the new graph. For other constants it gets tensors over the
    same bytes. Outputs keep their names, roles and users.

    Args:
        model: Gets the new graph.
        graph: The graph of the region.
        nodes: The region.
        inputs: All values that enter the region, in the order of the composite's operands.
        outputs: All values that leave it, in the order of the composite's results.
        name: The name of the composite.
        attributes: Written as a FlexBuffer; floats as float32, which readers expect.
        version: The version of the composite.

    Returns:
        The composite.

    Raises:
        MatchFailure: Another value crosses the border, a node has side effects, a result re-enters the
            region, or an input is quantized by block. Nothing was changed.
    """
    region = set(nodes)
    span = list(graph)
    indices = [index for index, node in enumerate(span) if node in region]
    assert len(indices) == len(region), "the region belongs to another graph"
    ordered = [span[index] for index in indices]
    span = span[indices[0] : indices[-1] + 1]
    _check(ordered, inputs, outputs)
    dependents = _dependents(span, region)
    inner = ir.Graph([], [], nodes=[], name=_graph_name(model, name), opset_imports={DOMAIN: 1})
    composite = _composite(inner, inputs, outputs, name, attributes or {}, version)
    graph.insert_after(ordered[-1], composite)
    _redirect_users(model, region, outputs, composite.outputs)
    graph.remove(ordered)
    inner.extend(ordered)
    _move_inputs(inner, inputs)
    _move_constants(graph, inner, region)
    inner.outputs.extend(outputs)
    model.graphs.append(inner)
    _make_names_unique(inner)
    if dependents:  # these nodes may stand before the composite, which they now read
        topological_sort(graph)
    return composite


def decompositions(model: Model) -> set[ir.Graph]:
    """Return the graphs of `model` that are decompositions of composites.

    Args:
        model: Any model.

    Returns:
        Their graphs.
    """
    nodes = (node for graph in model.graphs for node in graph if node.op_type == COMPOSITE)
    return {node.attributes[_DECOMPOSITION].as_graph() for node in nodes}


def _check(region: Sequence[ir.Node], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
    inside = set(region)
    for operand in inputs:
        if operand.producer() in inside:
            fail("the region computes this input itself", operand)
        if _references(operand):
            fail("its quantization refers to other tensors, which cannot move with it", operand)
    for node in region:
        if has_side_effects(node):
            fail(f"{node.op_type} has side effects", node.outputs[0] if node.outputs else None)
        for value in (*node.inputs, *(v for u in node.inputs if u is not None for v in _references(u))):
            if value is None or value in inputs or value.producer() in inside or is_constant(value):
                continue
            fail(f"{node.op_type} in the region needs it too", value)
        for value in node.outputs:
            seen = value.is_graph_output() or any(use.node not in inside for use in value.uses())
            if seen and value not in outputs:
                fail("it is used outside the region too", value)
    for value in outputs:
        if value.producer() not in inside:
            fail("the region does not compute it", value)


def _dependents(span: Sequence[ir.Node], region: Collection[ir.Node]) -> set[ir.Node]:
    """The nodes of `span` outside the region that depend on it. MatchFailure if the region depends on them.

    `span` holds the graph's nodes in order, from the region's first to its last.
    """
    dependents: set[ir.Node] = set()
    for node in span:
        producers = {v.producer() for v in node.inputs if v is not None}
        if node not in region:
            if any(producer in region or producer in dependents for producer in producers):
                dependents.add(node)
        elif producers & dependents:
            fail(f"a result of the region goes back into {node.op_type} in the region", node.outputs[0])
    return dependents


def _composite(
    inner: ir.Graph,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, float | int | bool | str],
    version: int,
) -> ir.Node:
    float32_attributes = {
        key: np.float32(item).item() if isinstance(item, float) else item for key, item in attributes.items()
    }
    packed = flatbuffers.flexbuffers.Dumps(float32_attributes)
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


def _redirect_users(
    model: Model, region: Collection[ir.Node], old: Sequence[ir.Value], new: Sequence[ir.Value]
) -> None:
    for inside, outside in zip(old, new, strict=True):
        model.replace(inside, outside)
        for use in list(inside.uses()):
            if use.node not in region:
                use.node.replace_input_with(use.idx, outside)


def _move_inputs(inner: ir.Graph, inputs: Sequence[ir.Value]) -> None:
    for value in inputs:
        own = _like(value)
        for node in inner:
            for index, operand in enumerate(node.inputs):
                if operand is value:
                    node.replace_input_with(index, own)
        inner.inputs.append(own)


def _move_constants(graph: ir.Graph, inner: ir.Graph, region: Collection[ir.Node]) -> None:
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
    constants: Mapping[str, ir.Value] = quantization_constants(value)
    return constants.values()


def _is_referred_to(graph: ir.Graph, value: ir.Value) -> bool:
    """Whether the quantization of another constant names `value`."""
    return any(other is value for v in graph.initializers.values() for other in _references(v))


def _graph_name(model: Model, name: str) -> str:
    taken = {graph.name for graph in model.graphs}
    count = 0
    while (candidate := f"{name}.impl_{count}") in taken:
        count += 1
    return candidate


def _make_names_unique(inner: ir.Graph) -> None:
    """Rename inputs and outputs of the decomposition: quantizers need names that occur once."""
    for value in (*inner.inputs, *inner.outputs):
        value.name = fresh_name(inner, f"{inner.name}/{value.name}")
