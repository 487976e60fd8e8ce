"""Derived tensors: weights that are computed from stored tensors while they are read, by blocks of rows.

Each is an expression of stored tensors. Rows may be in another order, a matrix may be transposed, a constant
or a product of low rank (LoRA) may be added. Its JSON is part of a derived checkpoint
(`o2o.weights.derived_checkpoint`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from o2o.weights.weight_source import WeightSource

BLOCK_ELEMENTS = 1 << 22
"""Elements of a derived tensor that are computed at a time, about."""


class Expression(ABC):
    """A tensor that is computed by rows. For a vector, a row is a number."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    @abstractmethod
    def operands(self) -> Sequence[Expression]:
        """The expressions that it is computed from."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Compute some rows.

        Args:
            start: The first row.
            stop: The row after the last.

        Returns:
            float32 [stop - start, ...].
        """

    def leaves(self) -> Iterator[Leaf]:
        """List the stored tensors that it is computed from.

        Yields:
            Each of them.
        """
        for operand in self.operands:
            yield from operand.leaves()

    def all_rows(self) -> np.ndarray:
        """Compute the whole tensor.

        Returns:
            float32, of its shape.
        """
        return self.rows(0, self.shape[0])


@dataclass(frozen=True)
class Leaf(Expression):
    """A stored tensor.

    Attributes:
        source: The tensor.
    """

    source: WeightSource

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def operands(self) -> Sequence[Expression]:
        return ()

    def leaves(self) -> Iterator[Leaf]:
        yield self

    def rows(self, start: int, stop: int) -> np.ndarray:
        width = math.prod(self.shape[1:])
        numbers = self.source.as_float32(self.source.read(start * width, (stop - start) * width))
        return numbers.reshape(stop - start, *self.shape[1:])


def expression_of(source: WeightSource) -> Expression:
    """Write a tensor of a checkpoint as an expression of stored tensors.

    Args:
        source: The tensor, which may itself be derived.

    Returns:
        The expression.
    """
    return source.expression if isinstance(source, DerivedTensor) else Leaf(source)


@dataclass(frozen=True)
class Rows(Expression):
    """Rows of another tensor, in any order.

    Attributes:
        of: The other tensor.
        ranges: Which rows, as (start, stop, step) in the order of the result.
    """

    of: Expression
    ranges: tuple[tuple[int, int, int], ...]

    @cached_property
    def _index(self) -> np.ndarray:
        return np.concatenate([np.arange(*part) for part in self.ranges])

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(len(range(*part)) for part in self.ranges), *self.of.shape[1:])

    @property
    def operands(self) -> Sequence[Expression]:
        return (self.of,)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return _taken(self.of, self._index[start:stop])


def _taken(of: Expression, index: np.ndarray) -> np.ndarray:
    """The rows of `index`. Distant rows are read apart, near ones together."""
    first, end = int(index.min()), int(index.max()) + 1
    if end - first <= 2 * len(index):
        return of.rows(first, end)[index - first]
    half = len(index) // 2
    return np.concatenate([_taken(of, index[:half]), _taken(of, index[half:])])


@dataclass(frozen=True)
class Element(Expression):
    """One element of a tensor along its first axis: one layer of a stack of layers.

    Attributes:
        of: The stack [layers, rows, ...].
        index: The layer.
    """

    of: Expression
    index: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape[1:]

    @property
    def operands(self) -> Sequence[Expression]:
        return (self.of,)

    def rows(self, start: int, stop: int) -> np.ndarray:
        if isinstance(self.of, Leaf):
            width = math.prod(self.shape[1:])
            first = self.index * self.shape[0] + start
            source = self.of.source
            numbers = source.as_float32(source.read(first * width, (stop - start) * width))
            return numbers.reshape(stop - start, *self.shape[1:])
        return self.of.rows(self.index, self.index + 1)[0][start:stop]


@dataclass(frozen=True)
class Concatenated(Expression):
    """The rows of several tensors, one after the other.

    Attributes:
        parts: The tensors.
    """

    parts: tuple[Expression, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def operands(self) -> Sequence[Expression]:
        return self.parts

    def rows(self, start: int, stop: int) -> np.ndarray:
        pieces, first = [], 0
        for part in self.parts:
            end = first + part.shape[0]
            if start < end and stop > first:
                pieces.append(part.rows(max(start, first) - first, min(stop, end) - first))
            first = end
        return np.concatenate(pieces)


@dataclass(frozen=True)
class Transposed(Expression):
    """A transposed matrix.

    Attributes:
        of: The matrix.
    """

    of: Expression

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape[::-1]

    @property
    def operands(self) -> Sequence[Expression]:
        return (self.of,)

    def rows(self, start: int, stop: int) -> np.ndarray:
        height, width = self.of.shape
        result = np.empty((stop - start, height), np.float32)
        step = max(1, BLOCK_ELEMENTS // width)
        for first in range(0, height, step):
            end = min(first + step, height)
            result[:, first:end] = self.of.rows(first, end)[:, start:stop].T
        return result


@dataclass(frozen=True)
class Shifted(Expression):
    """A tensor with a constant added to each number.

    Attributes:
        of: The tensor.
        value: The constant.
    """

    of: Expression
    value: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    @property
    def operands(self) -> Sequence[Expression]:
        return (self.of,)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.of.rows(start, stop) + np.float32(self.value)


@dataclass(frozen=True)
class Sum(Expression):
    """A tensor plus a multiple of another one.

    Attributes:
        of: The tensor.
        other: The other tensor, of the same shape.
        scale: The factor of the other tensor.
    """

    of: Expression
    other: Expression
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    @property
    def operands(self) -> Sequence[Expression]:
        return (self.of, self.other)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.of.rows(start, stop) + np.float32(self.scale) * self.other.rows(start, stop)


@dataclass(frozen=True)
class LowRank(Expression):
    """The product of two thin matrices, as an adapter (LoRA) has them.

    Attributes:
        left: [rows, r].
        right: [r, columns].
    """

    left: Expression
    right: Expression

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.left.shape[0], self.right.shape[1])

    @property
    def operands(self) -> Sequence[Expression]:
        return (self.left, self.right)

    @cached_property
    def _right(self) -> np.ndarray:
        return self.right.all_rows()

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.left.rows(start, stop) @ self._right


@dataclass(frozen=True)
class DerivedTensor(WeightSource):
    """A weight that is computed while it is read.

    Attributes:
        name: Its name in the derived checkpoint.
        path: The file that defines it.
        expression: What it is computed from.
    """

    name: str
    path: Path
    expression: Expression

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """How the tensor that it is made of is stored."""
        return next(self.expression.leaves()).source.dtype

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.expression.shape

    @property
    def length(self) -> int:  # type: ignore[override]
        sources = [leaf.source for leaf in self.expression.leaves()]
        shares = [source.length * self.size // max(1, source.size) for source in sources]  # or a part
        return sum(min(source.length, share) for source, share in zip(sources, shares, strict=True))

    @property
    def key(self) -> Hashable:
        return self.expression.source.key if isinstance(self.expression, Leaf) else self.expression

    @property
    def read_size(self) -> int:
        width = math.prod(self.shape[1:])
        return max(1, BLOCK_ELEMENTS // max(1, width)) * width

    def check_float(self) -> None:
        for leaf in self.expression.leaves():
            leaf.source.check_float()

    def read(self, start: int, count: int) -> np.ndarray:
        width = math.prod(self.shape[1:])
        first, last = start // width, -(-(start + count) // width)
        return self.expression.rows(first, last).reshape(-1)[start - first * width :][:count]
