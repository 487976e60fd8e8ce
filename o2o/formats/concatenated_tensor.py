"""Several constants, one behind the other, as one."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant, pieces, storage_key, stream
from o2o.weights.external import Streamed


class Joined(Streamed):
    """The bytes of `parts`, in order, wherever each of them is."""

    def __init__(
        self, name: str, parts: Sequence[ir.TensorProtocol], shape: tuple[int, ...] | None = None
    ) -> None:
        """parts: of one dtype, [rows, ...] each, alike but for their rows, and of whole bytes. shape: that of
        all together, rows by rows for None."""
        rows = sum(part.shape.numpy()[0] for part in parts)
        whole = (rows, *parts[0].shape.numpy()[1:])
        super().__init__(self._read, parts[0].dtype, ir.Shape(shape or whole), name=name)
        self.parts = tuple(parts)

    @staticmethod
    def fit(parts: Sequence[ir.TensorProtocol]) -> bool:
        """Whether these can be joined."""
        kinds = {(part.dtype, tuple(part.shape.numpy()[1:])) for part in parts}
        bits = [math.prod(part.shape.numpy()) * part.dtype.bitwidth for part in parts]
        return len(kinds) == 1 and all(count % 8 == 0 for count in bits)

    @property
    def key(self) -> Hashable:
        return tuple(storage_key(part) for part in self.parts)

    def _read(self) -> ir.TensorProtocol:
        raw = np.frombuffer(b"".join(self.pieces()), np.uint8)
        return constant(raw, self.dtype, tuple(self.shape.numpy()), self.name or "")

    def pieces(self, size: int = 4 << 20) -> Iterator[bytes | memoryview]:
        for part in self.parts:
            yield from pieces(part, size)

    def tofile(self, file: BinaryIO) -> None:
        for part in self.parts:
            stream(part, file)

    def with_shape(self, shape: tuple[int, ...], name: str) -> Joined:
        return Joined(name, self.parts, shape)
