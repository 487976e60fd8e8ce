"""Constants that become smaller while they are written, a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.errors import ModelError
from o2o.formats.external_tensor import ExternalTensor
from o2o.formats.tensors import SourceTensor, StreamedTensor, storage_key
from o2o.quantization.schemes import Scheme
from o2o.weights.binding import weight_of
from o2o.weights.weight import Weight

AT_ONCE = 1 << 17  # numbers: with what is computed of them, they stay in a processor's cache


@dataclass
class Error:
    """How far the numbers of a matrix are from what they were: sums over all of them, in float64."""

    squares: float = 0.0  # of w
    difference: float = 0.0  # squares of s q - w
    largest: float = 0.0  # |w|
    furthest: float = 0.0  # |s q - w|

    @property
    def rms(self) -> float:
        """The root mean square of what was lost, as a share of that of the numbers."""
        return math.sqrt(self.difference / self.squares) if self.squares else 0.0

    @property
    def max(self) -> float:
        """The most that one number lost, as a share of the largest."""
        return self.furthest / self.largest if self.largest else 0.0

    def told(self) -> dict[str, float]:
        """For JSON."""
        return {"rms": self.rms, "max": self.max}

    def count(self, numbers: np.ndarray, lost: np.ndarray) -> None:
        """Add these numbers, flat float32, and what each of them has lost."""
        self.squares += _squares(numbers)
        self.difference += _squares(lost)
        self.largest = max(self.largest, float(numbers.max()), -float(numbers.min()))
        self.furthest = max(self.furthest, float(lost.max()), -float(lost.min()))

    def add(self, other: Error) -> None:
        self.squares, self.difference = self.squares + other.squares, self.difference + other.difference
        self.largest, self.furthest = max(self.largest, other.largest), max(self.furthest, other.furthest)


class QuantizedTensor(StreamedTensor):
    """The matrix `source` by `scheme`. `error` is known when it has been written, or read."""

    def __init__(
        self, name: str, source: ir.TensorProtocol, scheme: Scheme, shape: tuple[int, int] | None = None
    ) -> None:
        """source: [rows, columns] of floats, which stays where it is; shape: where the source's is not so.

        Reads it once, for the scales [rows, blocks], which are kept as they are stored. Raises ModelError for
        numbers that are not finite, or beyond what the scheme can store.
        """
        self.source, self.scheme = source, scheme
        rows, columns = shape or source.shape.numpy()
        super().__init__(scheme.dtype, (rows, columns), name, [source])
        self.error: Error | None = None
        dtype = np.float16 if scheme.block else np.float32
        self.stored_scales = np.empty((rows, scheme.blocks(columns)), dtype)
        start = 0
        for w in _rows(source, columns):
            bounds = _bounds(w, scheme)
            if not bounds.max() <= scheme.largest:  # NaN is not, either
                raise ModelError(
                    f"{name} has numbers that are not finite, or beyond {scheme.largest:.3g}: {scheme.name} "
                    "cannot store them"
                )
            if scheme.limit:
                self.stored_scales[start : start + len(w)] = _scales(w, bounds, scheme)
            start += len(w)

    @property
    def scales(self) -> np.ndarray:
        """As float32."""
        return self.stored_scales.astype(np.float32, copy=False)

    @property
    def key(self) -> Hashable:
        return "quantized", self.scheme, storage_key(self.source)

    def pieces(self, size: int = 0) -> Iterator[bytes]:
        """The bytes, some rows at a time, whatever `size` is."""
        error = Error()
        numbers = _Rows(self.scheme, self.shape.numpy()[1])
        start = 0
        for w in _rows(self.source, self.shape.numpy()[1]):
            yield numbers.stored(w, self.stored_scales[start : start + len(w)], error).tobytes()
            start += len(w)
        self.error = error


class _Rows:
    """Rows as they are stored; the room for what is computed on the way is made once."""

    def __init__(self, scheme: Scheme, columns: int) -> None:
        self.scheme, self.columns = scheme, columns
        rows = max(1, AT_ONCE // columns)
        self.floats = np.empty((rows, columns), np.float32)
        self.stored_ = np.empty((rows, columns), np.float16 if not scheme.limit else np.int8)

    def stored(self, w: np.ndarray, scales: np.ndarray, error: Error) -> np.ndarray:
        """The bytes of w, float32 [rows, columns], uint8; what is lost is added to `error`."""
        floats, stored = self.floats[: len(w)], self.stored_[: len(w)]
        if self.scheme.limit:
            shape, scale = (*scales.shape, -1), scales.astype(np.float32, copy=False)[..., None]
            blocks = floats.reshape(shape)
            _round(w.reshape(shape), scale, self.scheme, blocks)
            np.copyto(stored, floats, casting="unsafe")
            np.multiply(blocks, scale, out=blocks)
        else:
            np.copyto(stored, w, casting="same_kind")
            np.copyto(floats, stored)
        np.subtract(floats, w, out=floats)
        error.count(w.reshape(-1), floats.reshape(-1))
        raw: np.ndarray = stored.reshape(-1).view(np.uint8)
        if self.scheme.bits == 4:  # the first in the lower half
            raw = (raw[0::2] & 15) | (raw[1::2] << 4)
        return raw


def _squares(numbers: np.ndarray) -> float:
    """Their sum; in float64, since squares of small float32 are zero in float32."""
    exact = numbers.astype(np.float64)
    return float(np.dot(exact, exact))


def _bounds(w: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The largest |w| of each block, float32 [rows, blocks]; NaN where there is one."""
    blocks = np.abs(w).reshape(len(w) * (scheme.blocks(w.shape[1]) or 1), -1)
    if scheme.block:  # many short rows: quicker across than along
        blocks = np.ascontiguousarray(blocks.T)
    return blocks.max(0 if scheme.block else 1).reshape(len(w), -1)


def _scales(w: np.ndarray, bounds: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Those with which w, float32 [rows, columns], loses least: float32 [rows, blocks]."""
    candidates = [scheme.scales(bounds, limit) for limit in scheme.limits]
    if len(candidates) == 1:
        return candidates[0]
    blocks = w.reshape(*bounds.shape, -1)
    room = np.empty_like(blocks)
    lost = []
    for scales in candidates:
        scale = scales[..., None]
        _round(blocks, scale, scheme, room)
        np.multiply(room, scale, out=room)
        np.subtract(room, blocks, out=room)
        lost.append(np.einsum("rbc,rbc->rb", room, room))
    return np.choose(np.argmin(lost, axis=0), candidates)


def _round(blocks: np.ndarray, scale: np.ndarray, scheme: Scheme, out: np.ndarray) -> None:
    """out, float32, becomes the numbers that stand for `blocks` [..., columns of a block]."""
    np.divide(blocks, scale, out=out)
    np.rint(out, out=out)
    np.clip(out, scheme.lowest, scheme.limit, out=out)


def _rows(source: ir.TensorProtocol, columns: int) -> Iterator[np.ndarray]:
    """The numbers of `source`, float32 [some, columns]."""
    rows = max(1, AT_ONCE // columns)
    size = rows * columns
    for flat in _numbers(source, size):
        for start in range(0, len(flat), size):
            yield flat[start : start + size].reshape(-1, columns)


def _numbers(source: ir.TensorProtocol, size: int) -> Iterator[np.ndarray]:
    """The numbers of `source`, float32, flat, about `size` at a time; never all, where they are in a file."""
    if isinstance(source, ExternalTensor):
        source = weight_of(source)
    if isinstance(source, Weight):  # as the checkpoint has them, whatever they were to become
        yield from source.stored.pieces(size)
        return
    dtype = source.dtype.numpy()
    if isinstance(source, SourceTensor):
        for piece in source.pieces(size * dtype.itemsize):
            yield np.frombuffer(piece, dtype).astype(np.float32, copy=False)
        return
    yield source.numpy().reshape(-1).astype(np.float32, copy=False)
