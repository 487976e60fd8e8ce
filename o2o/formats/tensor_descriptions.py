"""TFLITE_METADATA: the descriptions of a TFLite model's inputs and outputs, in the order of the tensors.

    ModelMetadata       3 subgraph_metadata: one for each subgraph, by position
    SubGraphMetadata    2 input_tensor_metadata, 3 output_tensor_metadata: one for each tensor, by position;
                        7 input_tensor_groups, 8 output_tensor_groups
    TensorMetadata      0 name, often that of the tensor
    TensorGroup         1 tensor_names: names of TensorMetadata

A filter that removes, reorders or renames inputs and outputs changes these lists too. They are changed in the
bytes, in place: entries of a vector are moved, and new strings are appended. All else stays as it is.

Source: `metadata_schema.fbs` of TensorFlow Lite Support. The numbers are the fields' slots there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import onnx_ir as ir

from o2o.model import Model

METADATA_NAME = "TFLITE_METADATA"

_SUBGRAPHS = 3  # slot of ModelMetadata
_TENSORS = {"input": 2, "output": 3}  # slots of SubGraphMetadata
_GROUPS = {"input": 7, "output": 8}
_NAME, _TENSOR_NAMES = 0, 1  # slots of TensorMetadata and TensorGroup
Io = Literal["input", "output"]
IO: tuple[Io, Io] = ("input", "output")


class Description(NamedTuple):
    """The place of a tensor's description in the file that was read.

    Attributes:
        place: Its place in the list.
        name: The name of the tensor in that file.
    """

    place: int
    name: str


def attach(model: Model) -> None:
    """Note on each input and output the place of its description: `meta["input_description"]`, ...

    Args:
        model: A model as it was read.
    """
    if any(name == METADATA_NAME for name, _ in model.metadata):
        for number, graph in enumerate(model.graphs):
            graph.meta["description"] = number
            for io, values in (("input", graph.inputs), ("output", graph.outputs)):
                for index, value in enumerate(values):
                    value.meta.setdefault(f"{io}_description", Description(index, value.name or ""))


def detach(model: Model) -> None:
    """Forget the places, as for a model whose metadata is not written.

    Args:
        model: The model.
    """
    for graph in model.graphs:
        graph.meta.pop("description", None)


def updated(model: Model, data: bytes) -> bytes:
    """Return the metadata for the model's present inputs and outputs.

    Args:
        model: The model.
        data: The metadata as it was read.

    Returns:
        The same bytes if nothing changed, or if they are no such metadata.
    """
    buffer = bytearray(data)
    try:
        _update(model, buffer)
    except (struct.error, IndexError, UnicodeDecodeError):
        return data
    return bytes(buffer)


def _update(model: Model, data: bytearray) -> None:
    if not any("description" in graph.meta for graph in model.graphs):
        return  # it was not read from a file
    root = _Table(data, struct.unpack_from("<I", data)[0])
    described = root.tables(_SUBGRAPHS)
    for graph in model.graphs:
        number = graph.meta.get("description")
        if number is None or number >= len(described):
            continue
        for io in IO:
            values = graph.inputs if io == "input" else graph.outputs
            if _arrange(described[number], _TENSORS[io], [v.meta.get(f"{io}_description") for v in values]):
                _rename(model, graph, described[number], io, values)
    order = [graph.meta.get("description") for graph in model.graphs]
    known = [number for number in order if number is not None and number < len(described)]
    if known != [*range(len(described))]:
        _reorder(root, _SUBGRAPHS, known if order[: len(known)] == known else [])


def _arrange(subgraph: _Table, slot: int, places: Sequence[Description | None]) -> bool:
    """Order the descriptions of tensors like the tensors. False if none are left."""
    count = len(subgraph.tables(slot))
    indices = [one.place if one is not None and one.place < count else None for one in places]
    while indices and indices[-1] is None:
        indices.pop()
    # A tensor without a description before one that has one: the list would describe the wrong tensors.
    present = [index for index in indices if index is not None]
    if len(present) < len(indices) or len(present) > count:
        present = []
    if present != [*range(count)]:
        _reorder(subgraph, slot, present)
    return bool(present)


def _reorder(table: _Table, slot: int, indices: Sequence[int]) -> None:
    """Give a vector of tables these of its entries."""
    vector = table.vector(slot)
    if vector is None:
        return
    targets = [entry.position for entry in table.tables(slot)]
    struct.pack_into("<I", table.data, vector, len(indices))
    for place, index in enumerate(indices):
        position = vector + 4 + 4 * place
        struct.pack_into("<I", table.data, position, targets[index] - position)


def _rename(model: Model, graph: ir.Graph, subgraph: _Table, io: Io, values: Sequence[ir.Value]) -> None:
    """Rename the descriptions that have the name of their tensor, as that was renamed."""
    new_names = {}
    for description, value in zip(subgraph.tables(_TENSORS[io]), values, strict=False):
        place = value.meta[f"{io}_description"]
        if value.name and place.name != value.name and description.string(_NAME) == place.name:
            new_names[place.name] = value.name
            description.set_string(_NAME, value.name)
    for group in subgraph.tables(_GROUPS[io]) if new_names else ():
        for position, name in group.strings(_TENSOR_NAMES):
            if name in new_names:
                _point_to_string(group.data, position, new_names[name])


@dataclass
class _Table:
    """A table of a FlatBuffer that is changed in place."""

    data: bytearray
    position: int

    def field(self, slot: int) -> int | None:
        """The position of a field; None if it has its default."""
        vtable = self.position - struct.unpack_from("<i", self.data, self.position)[0]
        (size,) = struct.unpack_from("<H", self.data, vtable)
        offset = 4 + 2 * slot
        start = struct.unpack_from("<H", self.data, vtable + offset)[0] if offset < size else 0
        return self.position + start if start else None

    def vector(self, slot: int) -> int | None:
        field = self.field(slot)
        return None if field is None else field + struct.unpack_from("<I", self.data, field)[0]

    def _entries(self, slot: int) -> Iterator[tuple[int, int]]:
        """For each entry of a vector of offsets: its position, and that of its target."""
        vector = self.vector(slot)
        if vector is not None:
            (length,) = struct.unpack_from("<I", self.data, vector)
            for position in range(vector + 4, vector + 4 + 4 * length, 4):
                yield position, position + struct.unpack_from("<I", self.data, position)[0]

    def tables(self, slot: int) -> list[_Table]:
        return [_Table(self.data, target) for _, target in self._entries(slot)]

    def strings(self, slot: int) -> list[tuple[int, str]]:
        return [(position, _string(self.data, target)) for position, target in self._entries(slot)]

    def string(self, slot: int) -> str | None:
        position = self.vector(slot)
        return None if position is None else _string(self.data, position)

    def set_string(self, slot: int, text: str) -> None:
        field = self.field(slot)
        assert field is not None
        _point_to_string(self.data, field, text)


def _string(data: bytearray, position: int) -> str:
    (length,) = struct.unpack_from("<I", data, position)
    return data[position + 4 : position + 4 + length].decode()


def _point_to_string(data: bytearray, position: int, text: str) -> None:
    """Append a string, and let the offset at `position` point to it."""
    data += bytes(-len(data) % 4)
    struct.pack_into("<I", data, position, len(data) - position)
    encoded = text.encode()
    data += struct.pack("<I", len(encoded)) + encoded + b"\0"
    data += bytes(-len(data) % 4)
