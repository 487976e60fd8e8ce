"""Several constants as one: their rows or columns, concatenated while they are written."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import CHUNK, StreamedTensor, chunks, storage_key, stream


class ConcatenatedTensor(StreamedTensor):
    """The bytes of several constants, in order. None of them is copied before it is written."""

    def __init__(
        self, name: str, parts: Sequence[ir.TensorProtocol], shape: tuple[int, ...] | None = None
    ) -> None:
        """Concatenate constants along their first axis.

        Args:
            name: The name of the result.
            parts: Constants [rows, ...] for which `fit` holds.
            shape: The shape of the result; None for [sum of rows, ...].
        """
        rows = sum(part.shape.numpy()[0] for part in parts)
        super().__init__(parts[0].dtype, shape or (rows, *parts[0].shape.numpy()[1:]), name, parts)

    @staticmethod
    def fit(parts: Sequence[ir.TensorProtocol]) -> bool:
        """Return whether constants can be concatenated.

        Args:
            parts: Constants [rows, ...].

        Returns:
            True if they have one dtype, differ only in their rows, and each takes a whole number of bytes.
        """
        kinds = {(part.dtype, tuple(part.shape.numpy()[1:])) for part in parts}
        bits = [math.prod(part.shape.numpy()) * part.dtype.bitwidth for part in parts]
        return len(kinds) == 1 and all(count % 8 == 0 for count in bits)

    @property
    def key(self) -> Hashable:
        return tuple(storage_key(part) for part in self.parts)

    def chunks(self, size: int = CHUNK) -> Iterator[bytes | memoryview]:
        for part in self.parts:
            yield from chunks(part, size)

    def tofile(self, file: BinaryIO) -> None:
        for part in self.parts:
            stream(part, file)

    def with_shape(self, shape: tuple[int, ...], name: str) -> ConcatenatedTensor:
        return ConcatenatedTensor(name, self.parts, shape)


class ConcatenatedColumns(StreamedTensor):
    """The columns of several matrices, in order. They are read a few rows at a time."""

    def __init__(self, name: str, parts: Sequence[ir.TensorProtocol]) -> None:
        """Concatenate matrices along their last axis.

        Args:
            name: The name of the result.
            parts: Constants [D, columns] for which `fit` holds.
        """
        columns = sum(part.shape.numpy()[1] for part in parts)
        super().__init__(parts[0].dtype, (parts[0].shape.numpy()[0], columns), name, parts)

    @staticmethod
    def fit(parts: Sequence[ir.TensorProtocol]) -> bool:
        """Return whether matrices can be concatenated.

        Args:
            parts: Constants [D, columns].

        Returns:
            True if they are matrices of one dtype of whole bytes, and differ only in their columns.
        """
        kinds = {(part.dtype, len(part.shape), part.shape.numpy()[:1]) for part in parts}
        return len(kinds) == 1 and len(parts[0].shape) == 2 and parts[0].dtype.bitwidth % 8 == 0

    @property
    def key(self) -> Hashable:
        return "columns", tuple(storage_key(part) for part in self.parts)

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        rows = self.parts[0].shape.numpy()[0]
        widths = [part.nbytes // rows if rows else 0 for part in self.parts]
        step = max(1, size // max(1, sum(widths)))
        streams = [
            _Stream(chunks(part, step * width)) for part, width in zip(self.parts, widths, strict=True)
        ]
        for start in range(0, rows, step):
            count = min(step, rows - start)
            blocks = [
                np.frombuffer(stream.read(count * width), np.uint8).reshape(count, width)
                for stream, width in zip(streams, widths, strict=True)
            ]
            yield np.concatenate(blocks, axis=1).tobytes()


class _Stream:
    """Bytes that are produced in chunks, read in pieces of other sizes."""

    def __init__(self, parts: Iterator[bytes | memoryview]) -> None:
        self._parts = parts
        self._rest = memoryview(b"")

    def read(self, count: int) -> bytes | memoryview:
        """Return the next `count` bytes."""
        if len(self._rest) < count:
            pieces, length = [self._rest], len(self._rest)
            while length < count:
                pieces.append(memoryview(next(self._parts)).cast("B"))
                length += len(pieces[-1])
            self._rest = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        block, self._rest = self._rest[:count], self._rest[count:]
        return block
