"""Root tables: TFLite models of some of a model's signatures, over the same tables and weights.

LiteRT compiles all signatures of a model, which takes long. A FlatBuffers file begins with the offset of its
root table. So another root table in front of the other tables makes another model of the file. It lists some
of the signatures, and has an empty subgraph in the place of every other signature. The numbers of subgraphs
and buffers do not change. XNNPACK identifies packed weights by the numbers of buffers.

    | offset of the root table, identifier | places for root tables | the tables of the model |
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime_py.engines.litert.mapped_bytes import MappedBytes

START = 8
"""Bytes before the first place: the offset of the root table, and the file identifier."""
_ALIGNMENT = 64  # bytes; tables behind the places keep the alignment of their scalars and small constants
_ROOT = (20, 24, 4, 8, 12, 0, 16, 0, 0, 20)
"""The vtable of a root table: its size, the table's size, and where the table has fields 0 to 7 of `Model`.
These are version, operator_codes, subgraphs, -, buffers, -, -, signature_defs."""
_EMPTY = (12, 20, 4, 8, 12, 16)
"""The vtable of an empty subgraph: fields 0 to 3 of `SubGraph` are vectors, here all one empty vector."""


@dataclass(frozen=True)
class RootTables:
    """Where the tables are that a root table refers to.

    Attributes:
        version: The version of the schema.
        operator_codes: The position of this vector, in bytes from the begin of the file.
        buffers: The position of this vector.
        subgraphs: The positions of the subgraphs, by number.
        signatures: The number of the subgraph, and the position of the table, of each signature by name.
    """

    version: int
    operator_codes: int
    buffers: int
    subgraphs: Sequence[int]
    signatures: Mapping[str, Sequence[int]]

    def select(self, names: Collection[str], number: int, file: MappedBytes) -> None:
        """Let the file be a model of some of its signatures, until the next call.

        Args:
            names: Their names.
            number: The number of the place for the root table, from 0, below the number of signatures. A
                model that was made before in another place stays valid.
            file: The file, with places.
        """
        start = START + number * _size(len(self.subgraphs), len(self.signatures))
        file.write(self._root(names, start), start)
        file.write(struct.pack("<I", start + _ROOT[0]))

    def _root(self, names: Collection[str], start: int) -> bytes:
        """A root table, with its vtable before it and its vectors behind it, for the position `start`."""
        of_signatures = {subgraph for subgraph, _ in self.signatures.values()}
        chosen = [self.signatures[name] for name in names]
        omitted = of_signatures - {subgraph for subgraph, _ in chosen}
        data = bytearray(struct.pack("<10H", *_ROOT))

        def put(*targets: int) -> None:
            """Append offsets to positions behind them."""
            for target in targets:
                data.extend(struct.pack("<I", target - start - len(data)))

        subgraphs = start + sum(_ROOT[:2])
        signatures = subgraphs + 4 * (1 + len(self.subgraphs))
        empty = signatures + 4 * (1 + len(chosen)) + _EMPTY[0]
        data += struct.pack("<iI", _ROOT[0], self.version)
        put(self.operator_codes, subgraphs, self.buffers, signatures)
        data += struct.pack("<I", len(self.subgraphs))
        put(*(empty if index in omitted else place for index, place in enumerate(self.subgraphs)))
        data += struct.pack("<I", len(chosen))
        put(*(position for _, position in chosen))
        data += struct.pack("<6Hi", *_EMPTY, _EMPTY[0])
        put(*[empty + _EMPTY[1]] * 4)
        return bytes(data) + bytes(4)


def with_places(tables: bytes) -> tuple[bytes, RootTables]:
    """Put places for root tables in front of a model, one for each signature.

    Args:
        tables: The tables of a TFLite file.

    Returns:
        The tables behind the places, still a model of all signatures, and what root tables refer to.
        `Buffer.offset` of each constant has to grow by the difference in length.
    """
    from ai_edge_litert.schema_py_generated import Model

    model = Model.GetRootAs(tables, 0)
    subgraphs, signatures = model.SubgraphsLength(), model.SignatureDefsLength()
    shift = -(-(START + signatures * _size(subgraphs, signatures)) // _ALIGNMENT) * _ALIGNMENT
    defs = [model.SignatureDefs(index) for index in range(signatures)]
    roots = RootTables(
        model.Version(),
        shift + _target(model._tab, 1),
        shift + _target(model._tab, 4),
        [shift + model.Subgraphs(index)._tab.Pos for index in range(subgraphs)],
        {of.SignatureKey().decode(): [of.SubgraphIndex(), shift + of._tab.Pos] for of in defs},
    )
    root = struct.unpack_from("<I", tables)[0] + shift
    head = struct.pack("<I", root) + tables[4:START]
    return head + bytes(shift - START) + tables, roots


def _size(subgraphs: int, signatures: int) -> int:
    """Bytes of a place."""
    return sum(_ROOT[:2]) + 4 * (2 + subgraphs + signatures) + sum(_EMPTY[:2]) + 4


def _target(table: Any, field: int) -> int:
    """The position of the vector that a field of a table refers to."""
    return int(table.Indirect(table.Pos + table.Offset(4 + 2 * field)))
