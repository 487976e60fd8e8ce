"""Random inputs of a signature: at several positions of its caches, of several sizes and magnitudes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from o2o.check.runner import Arrays, IoTensor
from o2o.check.symbolic_sizes import EXAMPLE, sizes_of

SEED = 0
WORDS = (b"", b"a", b"two words", "sch\u00f6n".encode(), b"0123456789" * 3)
"""What strings are fed."""
DYNAMIC_SIZE = 3
"""The size of axes that the caller chooses, besides the example in the file."""
LARGER_SIZES = (32, 256, 2048, 16000)
"""Sizes to try for a model that takes no smaller ones, such as one of sound."""
SMALL = 1e-3
"""The magnitude of small numbers, with which a wrong epsilon is seen."""

Numbers = Literal["normal", "small", "positive", "ones", "zeros"]


@dataclass(frozen=True)
class Case:
    """How to draw the inputs of one run.

    Attributes:
        position: The position of the first token.
        numbers: `normal`: standard normal numbers. `small`: the same times `SMALL`. `positive`: from 0 to 1,
            and larger integers. `ones`, `zeros`: nothing else.
        size: The size of axes that the caller chooses; None for the examples in the file.
    """

    position: int = 0
    numbers: Numbers = "normal"
    size: int | None = None

    @property
    def is_last_resort(self) -> bool:
        """Whether it is tried only where the original fails with all inputs before."""
        return self.size in LARGER_SIZES or self.numbers in ("ones", "zeros")

    def __str__(self) -> str:
        size = "" if self.size is None else f", sizes {self.size}"
        return f"position {self.position}{size}" + (
            "" if self.numbers == "normal" else f", {self.numbers} inputs"
        )


def cases(inputs: Mapping[str, IoTensor], new_inputs: Mapping[str, IoTensor]) -> Iterator[Case]:
    """Choose the runs that compare two signatures.

    Args:
        inputs: The inputs of the one.
        new_inputs: The inputs of the other, which may have fewer cache rows.

    Yields:
        The first position, a middle one, and the last at which all caches have room.
    """
    for position in _positions(inputs, new_inputs):
        yield Case(position)
    drawn = [tensor for tensor in inputs.values() if tensor.kind not in ("tokens", "position", "window_row")]
    if any(tensor.slot is None and tensor.capacity is None for tensor in drawn):
        yield Case(numbers="small")
        yield Case(numbers="positive")
    if any(tensor.dynamic for tensor in inputs.values()):
        yield Case(size=DYNAMIC_SIZE)
        yield from (Case(size=size) for size in LARGER_SIZES)
    yield Case(numbers="ones")
    yield Case(numbers="zeros")


def _positions(*inputs: Mapping[str, IoTensor]) -> list[int]:
    tensors = [tensor for some in inputs for tensor in some.values()]
    tokens = max((t.shape[-1] for t in tensors if t.kind == "tokens" and t.shape), default=1)
    rows = [t.capacity - max(t.rows_written, tokens) for t in tensors if t.capacity is not None]
    last = max(0, min(rows, default=0))
    return sorted({0, last // 2, last})


def window_row(inputs: Mapping[str, IoTensor], position: int) -> int:
    """Choose the row of the first token in window caches.

    Args:
        inputs: The inputs of a signature.
        position: The position of the first token.

    Returns:
        The position, or the last row in which there is room; the position without window caches.
    """
    tensors = inputs.values()
    tokens = max((t.shape[-1] for t in tensors if t.kind == "tokens" and t.shape), default=1)
    axes = [(t.shape, t.token_axis) for t in tensors if t.is_window_cache]
    rows = [shape[axis] for shape, axis in axes if axis is not None]
    return min([position, *(count - tokens for count in rows)])


def random_feeds(inputs: Mapping[str, IoTensor], case: Case) -> Arrays:
    """Draw the inputs of a run. The same case draws the same numbers.

    Args:
        inputs: The inputs of a signature.
        case: How to draw.

    Returns:
        Inputs by name.
    """
    generator = np.random.default_rng((SEED, case.position))
    row = window_row(inputs, case.position)
    feeds = {}
    symbols = sizes_of([(tensor.kind, tensor.dims) for tensor in inputs.values()], case.size or EXAMPLE)
    for name, tensor in inputs.items():
        shape = [_size(tensor, axis, case, symbols) for axis in range(len(tensor.shape))]
        if tensor.default is not None:
            feeds[name] = tensor.default.numpy()
            continue
        if tensor.kind in ("position", "window_row"):
            first = row if tensor.kind == "window_row" else case.position
            numbers = first + np.arange(int(np.prod(shape))).reshape(shape)
        else:
            numbers = _draw(generator, tensor, shape, case.numbers)
        feeds[name] = np.asarray(numbers, tensor.dtype)
    return feeds


def _size(tensor: IoTensor, axis: int, case: Case, symbols: Mapping[str, int]) -> int:
    """The size of an axis in a run."""
    dim = tensor.dims[axis] if tensor.dims else tensor.shape[axis]
    if isinstance(dim, str):
        return symbols[dim]
    return case.size if case.size and axis in tensor.dynamic else tensor.shape[axis]


def _draw(generator: np.random.Generator, tensor: IoTensor, shape: list[int], numbers: Numbers) -> np.ndarray:
    dtype = tensor.dtype
    assert dtype is not None
    if numbers in ("ones", "zeros") and dtype.kind in "iufcb":
        return np.full(shape, numbers == "ones")
    if dtype.kind in "OSU":
        words = np.empty(len(WORDS), object)
        words[:] = WORDS
        chosen = np.empty(shape, object)
        chosen[...] = words[generator.integers(0, len(WORDS), shape)]
        return chosen
    if tensor.kind == "mask" and dtype.kind in "iu" and len(shape) == 2:  # no padding: each key is seen
        return np.ones(shape)
    if dtype.kind in "iu":
        if tensor.quantized or dtype.itemsize < 4:  # numbers or pixels, not indices
            limits = np.iinfo(dtype)
            return generator.integers(limits.min, limits.max + 1, shape)
        known = tensor.limit if tensor.limit > 2 or numbers != "positive" else 100
        return generator.integers(0, known, shape)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape)
    if dtype.kind == "c":
        return generator.standard_normal(shape) + 1j * generator.standard_normal(shape)
    if numbers == "positive":
        return generator.random(shape)
    return generator.standard_normal(shape) * (SMALL if numbers == "small" else 1.0)
