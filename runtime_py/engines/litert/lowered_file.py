"""A package's model as LiteRT takes it, while its weights stay where they are.

A Circle file is lowered to TFLite, which makes another graph over the same weights. So all that is new is a
head: the tables of a TFLite file and its small constants. LiteRT gets that head with the Circle file mapped
behind it (`runtime_py.engines.litert.mapped_bytes`), in which the large constants are found by offset. No
weight is copied.

    | head | up to a page | the Circle file: its own head, which nobody asks for, then the weights |
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o2o.errors import ModelError
from runtime_py.engines.litert.mapped_bytes import FileBehind

if TYPE_CHECKING:
    from o2o.formats.writer import Plan
    from o2o.model import Model
    from o2o.streams import Source

_FILE, _HEAD = "lowered.json", "head"  # as which it is kept


@dataclass(frozen=True)
class Lowered:
    """What has become of a model's file.

    head: the TFLite tables and small constants; None when the file is TFLite itself and serves as it is.
    places: for each constant that is still in the file, (where in the head its Buffer.offset stands, where
    in the file it begins). contract: see `o2o.contract.contract_of`. widened: how many bytes more weights
    take once packed, as those do that the graph makes float32 of less.
    """

    head: bytes | None
    places: tuple[tuple[int, int], ...]
    contract: Mapping[str, Any]
    widened: int = 0

    def over(self, file: Path) -> FileBehind | Path:
        """What LiteRT loads; `file` is what this was lowered from. Raises OSError."""
        if self.head is None:
            return file
        descriptor = os.open(file, os.O_RDONLY)
        try:
            joined = FileBehind(len(self.head), descriptor)
        finally:
            os.close(descriptor)
        head = bytearray(self.head)
        for field, offset in self.places:
            struct.pack_into("<Q", head, field, joined.start + offset)
        joined.write(head)
        return joined

    def save(self, folder: Path) -> None:
        """Keep it in `folder`. Raises OSError."""
        if self.head is not None:
            (folder / _HEAD).write_bytes(self.head)
        places = self.places if self.head is not None else None
        told = {"contract": self.contract, "places": places, "widened": self.widened}
        (folder / _FILE).write_text(json.dumps(told))

    @classmethod
    def load(cls, folder: Path) -> Lowered:
        """What `save` has put there. Raises OSError."""
        told = json.loads((folder / _FILE).read_text())
        if told["places"] is None:
            return cls(None, (), told["contract"], told["widened"])
        places = tuple((field, offset) for field, offset in told["places"])
        return cls((folder / _HEAD).read_bytes(), places, told["contract"], told["widened"])


def lower_file(file: Path, capacities: Sequence[int] | None = None) -> Lowered:
    """Lower the model in `file`. Raises ModelError for one that LiteRT cannot run, OSError.

    capacities: see `o2o.lower.litert.tuning.tune`.
    """
    from o2o.contract import contract_of
    from o2o.formats import plan, read
    from o2o.lower.litert.lowering import lower
    from o2o.lower.litert.tuning import remove_prefill_logits, tune
    from o2o.streams import open_file

    source = open_file(file)
    model = read(source)
    understand(model, file)
    if model.format == "tflite":
        contract = contract_of(model)
        if not any([tune(model, capacities), remove_prefill_logits(model)]):
            return Lowered(None, (), contract, _widened(model))
    else:
        tune(lower(model), capacities)
        remove_prefill_logits(model)
    return _head(plan(model, limit=0), source, contract_of(model), _widened(model))


def understand(model: Model, file: Path) -> None:
    """See that `model`, which is in `file`, has its weights, and roles for its ends. Raises ModelError."""
    from o2o.contract import contract_of
    from o2o.formats.external_tensor import ExternalTensor
    from runtime_py.model.ai_edge_roles import guess_roles

    constants = (value.const_value for graph in model.graphs for value in graph.initializers.values())
    if any(isinstance(constant, ExternalTensor) for constant in constants):
        raise ModelError(f"{file}: its weights are in other files: put them in with bind.weights.py")
    if not contract_of(model)["signatures"]:
        guess_roles(model)


def _widened(model: Model) -> int:
    """How many bytes more the constants of `model` are as float32, where a DEQUANTIZE makes that of them."""
    from o2o.formats.tensors import storage_key

    made = (node for graph in model.graphs for node in graph if node.op_type == "DEQUANTIZE")
    constants = (value.const_value for node in made if (value := node.inputs[0]) is not None)
    stored = {storage_key(constant): constant for constant in constants if constant is not None}
    return sum(4 * constant.size - constant.nbytes for constant in stored.values())


def _head(planned: Plan, source: Source, contract: Mapping[str, Any], widened: int) -> Lowered:
    """What is not in `source` of a file whose large constants are all found by offset."""
    from ai_edge_litert.schema_py_generated import Model

    from o2o.formats.schema import OFFSET_SLOT
    from o2o.formats.tensors import SourceTensor
    from o2o.formats.writer import LARGE_ALIGNMENT

    tables = Model.GetRootAs(planned.tables, 0)
    buffers = (tables.Buffers(index) for index in range(tables.BuffersLength()))
    fields = {
        buffer.Offset(): buffer._tab.Pos + buffer._tab.Offset(OFFSET_SLOT)
        for buffer in buffers
        if buffer.Offset() > 1
    }
    head = bytearray(planned.tables)
    places: list[tuple[int, int]] = []
    for segment in planned.segments:
        payload, start = segment.payload, segment.start
        field = fields.get(start)
        if field is not None and isinstance(payload, SourceTensor) and payload.source is source:
            places.append((field, payload.span.start))
            continue
        if field is not None:  # made by lowering: behind what is there
            start = -(-len(head) // LARGE_ALIGNMENT) * LARGE_ALIGNMENT
            struct.pack_into("<Q", head, field, start)
        data = payload if isinstance(payload, bytes) else payload.tobytes()
        head += bytes(start - len(head))
        head += data
    return Lowered(bytes(head), tuple(places), contract, widened)
