"""Roles of caches and positions by the operators that take them, for models whose contract names none.

Decoders in ONNX have the names that transformers gives to their inputs. These show what to feed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from o2o.check.interface import Expected, signature_of
from o2o.contract import Role, role_of
from o2o.model import Model, Signature
from o2o.operators.attention import Attention, is_attention
from o2o.operators.traits import passes_through, traits_of
from o2o.roles.names import role_by_name

DERIVED = "derived_role"  # the meta entry that marks them


def derive_roles(model: Model) -> None:
    """Give inputs a role that ATTENTION takes as caches, an operator takes as position, or a name says.

    Args:
        model: A copy that is not written. Roles of the contract stay.
    """
    for graph in model.graphs:
        layer = 0
        for node in graph:
            if is_attention(node):
                of = Attention.of(node)
                if of.k_cache is not None and of.v_cache is not None:
                    layout = of.layout
                    _derive(of.k_cache, Role("key_cache", layer, layout))
                    _derive(of.v_cache, Role("value_cache", layer, layout))
                    layer += 1
            for source in _position_inputs(node):
                _derive(source, Role("position"))
    if model.format == "onnx":
        for value in (value for graph in model.graphs for value in graph.inputs):
            role = role_by_name(value.name or "", is_input=True)
            if role is not None and role.kind in ("tokens", "position", "mask"):
                _derive(value, role)


def _derive(value: ir.Value, role: Role) -> None:
    if value.is_graph_input() and role_of(value) is None:
        value.meta["role"] = role
        value.meta[DERIVED] = True


def _position_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """The input that `node` takes as position, also through casts and reshapes."""
    position = traits_of(node).position
    value = node.inputs[position] if position is not None and position < len(node.inputs) else None
    while value is not None and not value.is_graph_input():
        producer = value.producer()
        value = producer.inputs[0] if producer is not None and passes_through(producer) else None
    if value is not None:
        yield value


def share_derived_roles(expected: Expected, olds: Sequence[Model], new: Model) -> None:
    """Give inputs and outputs the derived roles of those that they derive from, or that derive from them.

    Args:
        expected: Which inputs and outputs belong together.
        olds: Copies of the originals.
        new: A copy of the result.
    """
    by_name = {signature.name: signature for signature in new.signatures}
    for entry in expected:
        if entry.is_part or entry.name not in by_name:
            continue
        source, result = signature_of(olds, entry), by_name[entry.name]
        for name, tensor in entry.inputs.items():
            if name in result.inputs:
                _share(source.inputs[tensor.source], result.inputs[name])
        _name_updated(source, result, set(entry.outputs))
        _name_updated(result, source, {tensor.source for tensor in entry.outputs.values()})


def _share(a: ir.Value, b: ir.Value) -> None:
    for one, other in ((a, b), (b, a)):
        role = role_of(one)
        if role is not None and one.meta.get(DERIVED) and role_of(other) is None:
            other.meta["role"], other.meta[DERIVED] = role, True


def _name_updated(source: Signature, result: Signature, expected: set[str]) -> None:
    """New outputs without a role are caches that the original updates in place: by name, else in order."""
    caches = [value for value in source.inputs.values() if value.meta.get(DERIVED) and _role(value).is_cache]
    added = [
        value for name, value in result.outputs.items() if name not in expected and role_of(value) is None
    ]
    by_name = {value.name: value for value in added}
    for cache in caches:
        names = (cache.name or "").replace("past_", "present_", 1), f"{cache.name}_out"
        named = next((by_name[name] for name in names if name in by_name and name != cache.name), None)
        value = named if named in added else next(iter(added), None)
        if value is not None:
            added.remove(value)
            value.meta["role"] = _role(cache).output_role


def _role(value: ir.Value) -> Role:
    role = role_of(value)
    assert role is not None
    return role
