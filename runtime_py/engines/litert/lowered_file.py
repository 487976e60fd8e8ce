"""A model file lowered to TFLite without copying its weights.

Lowering a Circle file makes another graph over the same weights. Only a new header is needed: the tables of a
TFLite file and its small constants. LiteRT gets this header with the Circle file mapped behind it
(`runtime_py.engines.litert.mapped_bytes`), and finds the large constants there by offset.

    | header | padding to a page | the Circle file: its own header, which is not used, then the weights |

The header has places for other root tables (`runtime_py.engines.litert.root_tables`).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from o2o import garbage_collection
from runtime_py.engines.litert.mapped_bytes import MappedBytes
from runtime_py.engines.litert.root_tables import RootTables, with_places
from runtime_py.engines.model_file import ModelFile

if TYPE_CHECKING:
    from o2o.formats.writer import Plan
    from o2o.model import Model
    from o2o.streams import Source

PACKED = "packed"
"""Name of the file with packed weights, in the folder of a saved `LoweredFile`."""
_METADATA, _HEADER = "lowered.json", "header"  # names of the saved files


@dataclass(frozen=True)
class LoweredFile:
    """The TFLite form of a model file.

    Attributes:
        header: TFLite tables and small constants; None when the whole file is TFLite and needs no change.
        offsets: For each constant that stays in the model file: (where `header` stores its Buffer.offset, its
            offset in that file), in bytes.
        contract: As `o2o.contract.contract_of` returns it.
        weight_dtype: The dtype of the weights, for display.
        growth: Bytes that packed weights take in addition to the stored ones, because the graph dequantizes
            them to float32.
        verifiers: The names of the signatures that verify drafts (`o2o.lower.litert.draft_verifiers`).
        roots: Makes models of some of the signatures; None without a header.
        prefill_buckets: The names of prefills over fewer cache rows (`o2o.lower.litert.prefill_buckets`).
    """

    header: bytes | None
    offsets: tuple[tuple[int, int], ...]
    contract: Mapping[str, Any]
    weight_dtype: str = ""
    growth: int = 0
    verifiers: tuple[str, ...] = ()
    roots: RootTables | None = None
    prefill_buckets: tuple[str, ...] = ()

    def open(self, file: Path) -> MappedBytes | Path:
        """Return the TFLite model as LiteRT takes it.

        Args:
            file: The file that this was lowered from.

        Returns:
            The path of the file itself, or the header with the file mapped behind it.

        Raises:
            OSError: The file cannot be read.
        """
        if self.header is None:
            return file
        descriptor = os.open(file, os.O_RDONLY)
        try:
            mapped = MappedBytes(len(self.header), descriptor)
        finally:
            os.close(descriptor)
        mapped.write(self.header)
        for field, offset in self.offsets:
            mapped.write(struct.pack("<Q", mapped.start + offset), field)
        return mapped

    def save(self, folder: Path) -> None:
        """Write this to a folder, for `load`.

        Args:
            folder: An existing folder.

        Raises:
            OSError: It cannot be written.
        """
        if self.header is not None:
            (folder / _HEADER).write_bytes(self.header)
        metadata = {
            "contract": self.contract,
            "offsets": self.offsets if self.header is not None else None,
            "weight_dtype": self.weight_dtype,
            "growth": self.growth,
            "verifiers": self.verifiers,
            "roots": self.roots and asdict(self.roots),
            "prefill_buckets": self.prefill_buckets,
        }
        (folder / _METADATA).write_text(json.dumps(metadata))

    @classmethod
    def load(cls, folder: Path) -> LoweredFile:
        """Read what `save` wrote.

        Args:
            folder: The folder given to `save`.

        Returns:
            An equal object.

        Raises:
            OSError: A file is missing.
        """
        metadata = json.loads((folder / _METADATA).read_text())
        header = None if metadata["offsets"] is None else (folder / _HEADER).read_bytes()
        offsets = tuple((field, offset) for field, offset in metadata["offsets"] or ())
        return cls(
            header,
            offsets,
            metadata["contract"],
            metadata["weight_dtype"],
            metadata["growth"],
            tuple(metadata["verifiers"]),
            metadata["roots"] and RootTables(**metadata["roots"]),
            tuple(metadata["prefill_buckets"]),
        )


@dataclass(frozen=True)
class LoweringOptions:
    """How to lower a model.

    Attributes:
        buckets: Capacities of additional decode graphs, as for `o2o.lower.litert.tuning.tune`.
        all_logits: Whether prefills keep their logits; otherwise they are removed where that is faster.
        verifies: Whether signatures that verify drafts are added
            (`runtime_py.engines.litert.row_tile.draft_lengths`).
    """

    buckets: Sequence[int] | None = None
    all_logits: bool = False
    verifies: bool = False


@garbage_collection.paused()
def lower_file(model: ModelFile, options: LoweringOptions = LoweringOptions()) -> LoweredFile:
    """Lower a model to TFLite.

    Args:
        model: A Circle or TFLite file.
        options: How.

    Returns:
        The lowered file.

    Raises:
        ModelError: LiteRT cannot run the model.
        OSError: The file cannot be read.
    """
    from o2o.contract import contract_of
    from o2o.formats import plan
    from o2o.lower.litert import lower_to_litert
    from o2o.lower.litert.draft_verifiers import add_draft_verifiers, make_draft_verifiers
    from o2o.lower.litert.prefill_buckets import add_prefill_buckets, copy_prefills
    from o2o.lower.litert.tuning import remove_prefill_logits, tune
    from o2o.operators.core_attention import adaptive_blocks
    from o2o.rewriting.prefill_logits import restore_prefill_logits
    from runtime_py.engines.litert.row_tile import draft_lengths

    graphs, source = model.read()
    verifiers = make_draft_verifiers(graphs, draft_lengths(graphs)) if options.verifies else None
    prefills = None if options.all_logits else copy_prefills(graphs)
    contract = None
    if graphs.format == "tflite":
        contract = contract_of(graphs)
    else:
        lower_to_litert(graphs)
    restored = options.all_logits and restore_prefill_logits(graphs)
    tuned = tune(graphs, options.buckets)
    tuned |= restored or (not options.all_logits and remove_prefill_logits(graphs))
    largest = None if contract is not None else adaptive_blocks(1).kv
    shorter = () if prefills is None else tuple(add_prefill_buckets(graphs, prefills, largest))
    names = () if verifiers is None else tuple(add_draft_verifiers(graphs, verifiers))
    if contract is not None and not (tuned or shorter or names) and source.origin == 0:
        return LoweredFile(None, (), contract, model.weight_dtype, _growth(graphs))
    header, offsets, roots = _split(plan(graphs, limit=0), source)
    return LoweredFile(
        header, offsets, contract_of(graphs), model.weight_dtype, _growth(graphs), names, roots, shorter
    )


def _growth(model: Model) -> int:
    """Bytes by which constants grow where a DEQUANTIZE makes them float32."""
    from o2o.formats.tensors import storage_key

    dequantize = (node for graph in model.graphs for node in graph if node.op_type == "DEQUANTIZE")
    constants = (value.const_value for node in dequantize if (value := node.inputs[0]) is not None)
    stored = {storage_key(constant): constant for constant in constants if constant is not None}
    return sum(4 * constant.size - constant.nbytes for constant in stored.values())


def _split(planned: Plan, source: Source) -> tuple[bytes, tuple[tuple[int, int], ...], RootTables]:
    """(header, offsets, roots) of a planned file whose large constants are all found by offset."""
    from ai_edge_litert.schema_py_generated import Model

    from o2o.formats.schema import OFFSET_SLOT
    from o2o.formats.tensors import SourceTensor
    from o2o.formats.writer import LARGE_ALIGNMENT

    tables = Model.GetRootAs(planned.tables, 0)
    with_roots, roots = with_places(planned.tables)
    shift = len(with_roots) - len(planned.tables)
    buffers = (tables.Buffers(index) for index in range(tables.BuffersLength()))
    fields = {
        buffer.Offset(): shift + buffer._tab.Pos + buffer._tab.Offset(OFFSET_SLOT)
        for buffer in buffers
        if buffer.Offset() > 1
    }
    header = bytearray(with_roots)
    offsets: list[tuple[int, int]] = []
    for segment in planned.segments:
        payload, start = segment.payload, segment.start
        field = fields.get(start)
        if field is not None and isinstance(payload, SourceTensor) and payload.source is source:
            offsets.append((field, source.origin + payload.span.start))
            continue
        start += shift
        if field is not None:  # a large constant that lowering created: it goes to the end of the header
            start = -(-len(header) // LARGE_ALIGNMENT) * LARGE_ALIGNMENT
            struct.pack_into("<Q", header, field, start)
        data = payload if isinstance(payload, bytes) else payload.tobytes()
        header += bytes(start - len(header))
        header += data
    return bytes(header), tuple(offsets), roots
