"""KV caches of one text, in the forms in which graphs take and return them.

    appended   [1, K, P, H] in, [1, K, P + T, H] out       two buffers, used in turns
    in place   R rows in and out, one buffer               R grows where the graph leaves it open
    opaque     anything else: sliding windows, states      what ONNX Runtime returned last

Rows are never copied from run to run. They are copied when a text goes back, and when a buffer gets larger.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import onnx_ir as ir

from o2o.cli.silence_stderr import silenced_stderr

with silenced_stderr():
    import onnxruntime

MIN_ROWS = 64
"""Rows of the first buffers. They double whenever a text outgrows them."""


def value_of(array: np.ndarray, dtype: ir.DataType) -> onnxruntime.OrtValue:
    """Wrap an array for ONNX Runtime, without a copy.

    Args:
        array: Contiguous numbers, of `dtype` or of unsigned integers of its size. It must outlive the result.
        dtype: Their dtype in ONNX.

    Returns:
        The wrapped array.
    """
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(dtype))


class TextCache(Protocol):
    """One cache of one text. A run calls `seek`, `past`, `present` and `accept`, in this order."""

    def reusable(self, count: int) -> int:
        """Return from where a run can continue.

        Args:
            count: The wanted number of rows.

        Returns:
            `count`, or a smaller number.
        """
        ...

    def seek(self, count: int) -> None:
        """Drop the last rows.

        Args:
            count: How many rows stay, as `reusable` returned it.
        """
        ...

    def past(self, stop: int) -> onnxruntime.OrtValue:
        """Return the input of a run.

        Args:
            stop: The number of rows after the run.

        Returns:
            The tensor, which stays valid until the next call of `accept`.
        """
        ...

    def present(self, stop: int) -> onnxruntime.OrtValue | None:
        """Return the output of a run.

        Args:
            stop: The number of rows after the run.

        Returns:
            The tensor to write to; None if ONNX Runtime is to allocate it.
        """
        ...

    def accept(self, result: onnxruntime.OrtValue | None, stop: int) -> None:
        """Take the output of a run.

        Args:
            result: What `present` returned, or what ONNX Runtime allocated.
            stop: The number of rows after the run.
        """
        ...

    def copy(self, source: Self, stop: int) -> None:
        """Take rows of another text.

        Args:
            source: The cache of that text.
            stop: How many rows to take, from the first on.
        """
        ...

    def rows(self, stop: int) -> np.ndarray | None:
        """Copy rows out.

        Args:
            stop: How many, from the first on.

        Returns:
            The rows [stop, ...] as unsigned integers; None if the cache is not made of rows.
        """
        ...

    def write(self, rows: np.ndarray, stop: int) -> None:
        """Take rows that `rows` returned.

        Args:
            rows: At least `stop` rows.
            stop: How many to take, from the first on.
        """
        ...


class AppendedCache:
    """A cache that a run returns with T rows more."""

    def __init__(self, shape: Sequence[int], axis: int, dtype: ir.DataType) -> None:
        """Create an empty cache.

        Args:
            shape: Its shape; the size of `axis` does not matter.
            axis: The axis of the rows.
            dtype: Its dtype.
        """
        self._before, self._after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
        self._shape, self._axis, self._dtype = list(shape), axis, dtype
        self._buffers = [self._allocate(MIN_ROWS), self._allocate(0)]
        self.count = 0

    def reusable(self, count: int) -> int:
        return min(count, self.count)

    def seek(self, count: int) -> None:
        if count < self.count:
            self._take(self._rows(), count)

    def past(self, stop: int) -> onnxruntime.OrtValue:
        return value_of(self._view(0, self.count), self._dtype)

    def present(self, stop: int) -> onnxruntime.OrtValue:
        self._reserve(stop)
        return value_of(self._view(1, stop), self._dtype)

    def accept(self, result: onnxruntime.OrtValue | None, stop: int) -> None:
        self._buffers.reverse()
        self.count = stop

    def copy(self, source: AppendedCache, stop: int) -> None:
        self._take(source._rows(), stop)

    def rows(self, stop: int) -> np.ndarray:
        return np.array(np.moveaxis(self._rows()[:, :stop], 1, 0), order="C")

    def write(self, rows: np.ndarray, stop: int) -> None:
        self._take(np.moveaxis(rows[:stop], 0, 1), stop)

    def _take(self, rows: np.ndarray, count: int) -> None:
        """Hold the first rows of [before, rows, after] numbers."""
        self._reserve(count)
        target = self._buffers[1][: self._before * count * self._after]
        target.reshape(self._before, count, self._after)[...] = rows[:, :count]
        self._buffers.reverse()
        self.count = count

    def _reserve(self, rows: int) -> None:
        """Make room for rows in the buffer that is not in use."""
        size = self._buffers[1].size // max(1, self._before * self._after)
        if size < rows:
            self._buffers[1] = self._allocate(max(MIN_ROWS, 1 << (rows - 1).bit_length()))

    def _allocate(self, rows: int) -> np.ndarray:
        return np.zeros(self._before * rows * self._after, _storage(self._dtype))

    def _view(self, buffer: int, rows: int) -> np.ndarray:
        shape = [*self._shape]
        shape[self._axis] = rows
        return self._buffers[buffer][: math.prod(shape)].reshape(shape)

    def _rows(self) -> np.ndarray:
        return self._view(0, self.count).reshape(self._before, self.count, self._after)


class InPlaceCache:
    """A cache of more rows than are valid, in which a run writes T rows.

    The numbers of rows that are not valid yet do not matter, but must be finite.
    """

    def __init__(self, shape: Sequence[int], axis: int, dtype: ir.DataType, *, one_buffer: bool) -> None:
        """Create an empty cache.

        Args:
            shape: Its shape. The size of `axis` is the number of rows; 0 if it may grow.
            axis: The axis of the rows.
            dtype: Its dtype.
            one_buffer: Whether the graph may write into its input.
        """
        self._shape, self._axis, self._dtype = list(shape), axis, dtype
        self._grows = shape[axis] == 0
        if self._grows:
            self._shape[axis] = MIN_ROWS
        self._one_buffer = one_buffer
        self._allocate()

    def reusable(self, count: int) -> int:
        return count

    def seek(self, count: int) -> None:
        pass

    def past(self, stop: int) -> onnxruntime.OrtValue:
        self._reserve(stop)
        return self._values[0]

    def present(self, stop: int) -> onnxruntime.OrtValue:
        return self._values[-1]

    def accept(self, result: onnxruntime.OrtValue | None, stop: int) -> None:
        self._buffers.reverse()
        self._values.reverse()

    def copy(self, source: InPlaceCache, stop: int) -> None:
        self._reserve(stop)
        rows = (slice(None),) * self._axis + (slice(stop),)
        self._buffers[0][rows] = source._buffers[0][rows]

    def rows(self, stop: int) -> np.ndarray:
        return np.array(np.moveaxis(self._buffers[0], self._axis, 0)[:stop], order="C")

    def write(self, rows: np.ndarray, stop: int) -> None:
        self._reserve(stop)
        np.moveaxis(self._buffers[0], self._axis, 0)[:stop] = rows[:stop]

    def _allocate(self) -> None:
        """Allocate one buffer, or one for the input and one for the output."""
        count = 1 if self._one_buffer else 2
        self._buffers = [np.zeros(self._shape, _storage(self._dtype)) for _ in range(count)]
        self._values = [value_of(buffer, self._dtype) for buffer in self._buffers]

    def _reserve(self, rows: int) -> None:
        size = self._shape[self._axis]
        if not self._grows or rows <= size:
            return
        before = self._buffers[0]
        self._shape[self._axis] = 1 << (rows - 1).bit_length()
        self._allocate()
        self._buffers[0][(slice(None),) * self._axis + (slice(size),)] = before


class OpaqueCache:
    """A tensor that is what the last run returned. A text cannot go back but to its beginning."""

    def __init__(self, shape: Sequence[int], dtype: ir.DataType) -> None:
        """Create the tensor of an empty text.

        Args:
            shape: Its shape, with 0 rows where it grows.
            dtype: Its dtype.
        """
        self._zeros = np.zeros(shape, _storage(dtype))
        self._first = self._value = value_of(self._zeros, dtype)
        self.count = 0

    def reusable(self, count: int) -> int:
        return count if count == self.count else 0

    def seek(self, count: int) -> None:
        if count == 0:
            self._value, self.count = self._first, 0

    def past(self, stop: int) -> onnxruntime.OrtValue:
        return self._value

    def present(self, stop: int) -> None:
        return None

    def accept(self, result: onnxruntime.OrtValue | None, stop: int) -> None:
        assert result is not None
        self._value, self.count = result, stop

    def copy(self, source: OpaqueCache, stop: int) -> None:
        self._value, self.count = source._value, stop  # no run changes a tensor that was returned

    def rows(self, stop: int) -> None:
        return None

    def write(self, rows: np.ndarray, stop: int) -> None:
        raise NotImplementedError

    @property
    def shape(self) -> list[int]:
        """The present shape."""
        return list(self._value.shape())

    @property
    def bits(self) -> np.ndarray:
        """The present numbers as unsigned integers, a view."""
        size = math.prod(self.shape) * self._zeros.itemsize
        data = memoryview((ctypes.c_ubyte * size).from_address(self._value.data_ptr()))
        return np.ndarray(self.shape, self._zeros.dtype, data)


def _storage(dtype: ir.DataType) -> np.dtype:
    """The dtype of an array: zeros of any dtype are zeros of unsigned integers of its size."""
    return np.dtype(f"u{math.ceil(dtype.itemsize)}")
