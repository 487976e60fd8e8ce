"""The differences of the constants of two models, as data for JSON."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from o2o.diff.constants import distance, same_bytes
from o2o.diff.matching import Matching
from o2o.diff.tensor_fields import changed_fields, stored_shape, tensor_fields
from o2o.formats.tensors import is_constant, is_quantized, storage_key
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import dtype_name, quantization_constants

Json = dict[str, Any]


class ConstantChanges:
    """The constants of all graphs. Each pair of buffers is compared once."""

    def __init__(self) -> None:
        """Start without graphs."""
        self.entries: dict[Hashable, Json | None] = {}
        self.removed: dict[Hashable, Json] = {}
        self.added: dict[Hashable, Json] = {}
        self.equal = 0

    def compare(self, a: ir.Graph, b: ir.Graph, matching: Matching) -> None:
        """Compare the constants of two graphs.

        Args:
            a: A graph.
            b: Another.
            matching: The tensors that correspond. Other constants correspond by name.
        """
        pairs = {x: y for x, y in matching.values.items() if is_constant(x) and is_constant(y)}
        taken = set(pairs.values())
        others = {v.name: v for v in b.initializers.values() if is_constant(v) and v not in taken}
        for value in a.initializers.values():
            if is_constant(value) and value not in pairs:
                if value.name in others:
                    pairs[value] = others.pop(value.name)
                else:
                    self.removed.setdefault(_description(value), _constant(value))
        taken = set(pairs.values())
        for value in b.initializers.values():
            if is_constant(value) and value not in taken:
                self.added.setdefault(_description(value), _constant(value))
        for x, y in pairs.items():
            key = x.name, y.name, _key(x), _key(y)
            if key not in self.entries:
                self.entries[key] = _constant_changes(x, y)
                self.equal += self.entries[key] is None

    def as_json(self) -> Json:
        """Return what all comparisons have in common.

        Returns:
            The numbers of constants, and those that were changed, removed and added.
        """
        return {
            "count": {"compared": len(self.entries), "equal": self.equal},
            "changed": [entry for entry in self.entries.values() if entry is not None],
            "removed": list(self.removed.values()),
            "added": list(self.added.values()),
        }


def _key(value: ir.Value) -> Hashable:
    assert value.const_value is not None
    return value.name, storage_key(value.const_value)


def _description(value: ir.Value) -> Hashable:
    """Equal for constants that look the same: one of several graphs is enough."""
    return value.name, dtype_name(value), tuple(stored_shape(value) or ())


def _constant(value: ir.Value) -> Json:
    assert value.const_value is not None
    return {"name": value.name, **tensor_fields(value), "bytes": value.const_value.nbytes}


def _constant_changes(a: ir.Value, b: ir.Value) -> Json | None:
    """How two constants differ; None if they are equal."""
    assert a.const_value is not None
    assert b.const_value is not None
    before, after = tensor_fields(a), tensor_fields(b)
    before["name"], after["name"] = a.name, b.name
    if isinstance(a.const_value, UnboundTensor) != isinstance(b.const_value, UnboundTensor):
        before["stored"], after["stored"] = (_stored(value) for value in (a, b))
    fields = changed_fields(before, after)
    references = [quantization_constants(value) for value in (a, b)]
    if same_bytes(a.const_value, b.const_value) and not _other_scales(a, b, references):
        return {"name": b.name, "changed": fields} if fields else None
    entry: Json = {"name": b.name, "changed": fields}
    apart = distance(a, b)
    if apart is not None:
        entry["distance"] = apart.as_json()
    return entry


def _other_scales(a: ir.Value, b: ir.Value, references: Sequence[Mapping[str, ir.Value]]) -> bool:
    if not (is_quantized(a) and is_quantized(b)):
        return False
    for field in references[0].keys() & references[1].keys():
        x, y = references[0][field].const_value, references[1][field].const_value
        if x is not None and y is not None and not same_bytes(x, y):
            return True
    one, other = (value.meta["fields"]["quantization"] for value in (a, b))
    return any(
        list(getattr(one, name) if getattr(one, name) is not None else ())
        != list(getattr(other, name) if getattr(other, name) is not None else ())
        for name in ("scale", "zeroPoint")
    )


def _stored(value: ir.Value) -> str:
    tensor = value.const_value
    return f"in {tensor.path}" if isinstance(tensor, UnboundTensor) else "in the file"
