"""The differences of signatures and of the contract, as data for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from o2o.contract import role_of
from o2o.diff.correspondence import signature_pairs, value_pairs
from o2o.diff.tensor_fields import changed_fields, tensor_fields
from o2o.model import Model

Json = dict[str, Any]


def signature_changes(first: Model, second: Model) -> Json:
    """Compare the signatures of two models.

    Args:
        first: A model.
        second: Another.

    Returns:
        The names of those that only one has, and the changes of the others.
    """
    pairs = signature_pairs(first, second)
    changed = []
    for a, b in pairs:
        entry: Json = {"name": b.name}
        if a.name != b.name:
            entry["renamed"] = [a.name, b.name]
        for side, some, others in (("inputs", a.inputs, b.inputs), ("outputs", a.outputs, b.outputs)):
            if changes := _interface(some, others):
                entry[side] = changes
        if len(entry) > 1:
            changed.append(entry)
    left, right = ({id(side[k]) for side in pairs} for k in (0, 1))
    return {
        "removed": [s.name for s in first.signatures if id(s) not in left],
        "added": [s.name for s in second.signatures if id(s) not in right],
        "changed": changed,
    }


def _interface(some: Mapping[str, ir.Value], others: Mapping[str, ir.Value]) -> list[Json]:
    """The changes of inputs or outputs, by their names in a signature."""
    changes: list[Json] = []
    pairs = {id(a): b for a, b in value_pairs(some, others)}
    names = {id(value): name for name, value in others.items()}
    for name, value in some.items():
        other = pairs.get(id(value))
        if other is None:
            changes.append({"name": name, "removed": tensor_fields(value)})
            continue
        before, after = tensor_fields(value), tensor_fields(other)
        before["name"], after["name"] = name, names[id(other)]
        if fields := changed_fields(before, after):
            changes.append({"name": name, "changed": fields})
    matched = {id(other) for other in pairs.values()}
    changes += [
        {"name": name, "added": tensor_fields(value)}
        for name, value in others.items()
        if id(value) not in matched
    ]
    if not changes and list(some) != list(others):
        changes.append({"name": None, "order": [list(some), list(others)]})
    return changes


def contract_changes(first: Model, second: Model) -> list[Json]:
    """Compare the roles of inputs and outputs, of signatures that both models have.

    Args:
        first: A model.
        second: Another.

    Returns:
        Those whose roles differ.
    """
    changes = []
    for a, b in signature_pairs(first, second):
        for some, others in ((a.inputs, b.inputs), (a.outputs, b.outputs)):
            names = {id(value): name for name, value in others.items()}
            for x, y in value_pairs(some, others):
                if role_of(x) != role_of(y):
                    changes.append({"signature": b.name, "name": names[id(y)], "role": [_role(x), _role(y)]})
    return changes


def _role(value: ir.Value) -> str | None:
    """A role in words: kind, layer, layout."""
    role = role_of(value)
    if role is None:
        return None
    parts = (role.kind, None if role.layer is None else f"layer {role.layer}", role.layout)
    return ", ".join(part for part in parts if part is not None)
