"""The rotation of queries and keys (RoPE), proven by evaluation.

Exporters write a rotation in many ways. It rotates halves or neighbors, of a whole head or a part. Its tables
are sliced, repeated or interleaved on the way. All are linear functions of the heads, with coefficients from
tables of the position. Here each coefficient is read off the results for chosen operands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.lower.onnx.builder import dims
from o2o.lower.onnx.per_token import TokenValues
from o2o.model import DOMAIN, attribute, shape_of
from o2o.operators.reference import NotEvaluable, evaluate
from o2o.operators.traits import traits_of
from o2o.rewriting.regions import Region

_LINEAR = ("ADD", "SUB", "MUL", "NEG", "CONCATENATION", "PACK", "SPLIT", "SPLIT_V", "ROPE")


@dataclass(frozen=True)
class RopeTables:
    """Tables of a rotation, at each position, float32 [S, R / 2]. The first R elements of a head are rotated.

    Attributes:
        cos: Factors of an element itself.
        sin: Factors of the other element of its pair.
        interleaved: Whether pairs are (0, 1), (2, 3), ..., instead of (0, R / 2), (1, R / 2 + 1), ...
    """

    cos: ir.Value
    sin: ir.Value
    interleaved: bool

    @property
    def R(self) -> int:
        return 2 * int(dims(self.cos)[1])


def rotation_of(tokens: TokenValues, value: ir.Value) -> tuple[ir.Value, RopeTables] | None:
    """Return the heads before their rotation, and its tables.

    Args:
        tokens: The values of the graph.
        value: Queries or keys of one token, [.., H], with axes of size 1 at any place.

    Returns:
        The heads, with the elements of `value` in the same order, and the tables; None if `value` is not
        proven to be a rotation.
    """
    for region in tokens.regions.before(value, _is_linear, tokens.is_token_independent):
        tables = [operand for operand in region.side_operands if tokens.table(operand) is not None]
        if tables and math.prod(shape_of(region.source)) == math.prod(shape_of(value)):
            try:
                return _proven(tokens, region, tables)
            except NotEvaluable:
                return None
    return None


def _is_linear(node: ir.Node) -> bool:
    if node.domain != DOMAIN or attribute(node, "fusedActivationFunction", 0):
        return False
    return node.op_type in _LINEAR or (traits_of(node).movement is not None and node.op_type != "GATHER")


def _proven(
    tokens: TokenValues, region: Region, operands: list[ir.Value]
) -> tuple[ir.Value, RopeTables] | None:
    H = shape_of(region.result)[-1]
    heads = math.prod(shape_of(region.result)) // H
    terms = _Terms(region, operands, H)
    own = np.zeros((tokens.capacity, H), np.float32)  # the factor of each element itself
    other = np.zeros((tokens.capacity, H), np.float32)  # the factor of another element, of `partner`
    partner = np.arange(H)
    for operand in (None, *operands):
        term = terms.of(operand)
        if term is None:
            return None
        table = np.ones((tokens.capacity, 1), np.float32) if operand is None else tokens.table(operand)
        assert table is not None
        factors = table.reshape(tokens.capacity, -1)[:, term.column] * term.factor.astype(np.float32)
        is_own = term.element == np.arange(H)
        own[:, is_own] += factors[:, is_own]
        moved = ~is_own & (term.factor != 0)
        if np.any(partner[moved] != np.arange(H)[moved]):
            return None  # two other elements
        partner[moved] = term.element[moved]
        other[:, moved] = factors[:, moved]
    rotated = np.flatnonzero(partner != np.arange(H))
    R = len(rotated)
    if R % 2 or not R or not np.array_equal(rotated, np.arange(R)) or not np.all(own[:, R:] == 1):
        return None
    first, second = np.arange(R // 2), np.arange(R // 2, R)
    interleaved = False
    if not np.array_equal(partner[:R], np.r_[second, first]):
        interleaved = True
        first, second = np.arange(0, R, 2), np.arange(1, R, 2)
        if not (np.array_equal(partner[first], second) and np.array_equal(partner[second], first)):
            return None
    cos, sin = own[:, first], other[:, second]
    if not (np.array_equal(cos, own[:, second]) and np.array_equal(-sin, other[:, first])):
        return None
    if not terms.agree_with(cos, sin, first, second, heads, tokens):
        return None
    stem = region.result.name or "rotation"
    cos_table = tokens.op.constant(cos, f"{stem}/cos", np.float32)
    sin_table = tokens.op.constant(sin, f"{stem}/sin", np.float32)
    return region.source, RopeTables(cos_table, sin_table, interleaved)


@dataclass(frozen=True)
class _Term:
    """Of each result of a head: the one element that an operand multiplies, its factor, and the column of the
    operand. A factor of 0 for none."""

    element: np.ndarray
    factor: np.ndarray
    column: np.ndarray


class _Terms:
    """The terms of a region that is linear in its source and in each of its tables."""

    def __init__(self, region: Region, operands: list[ir.Value], H: int) -> None:
        self._region, self._operands, self._H = region, operands, H
        self._shape = shape_of(region.source)
        size = math.prod(self._shape)
        self._x = np.ones(size, np.float32), np.arange(size, dtype=np.float32) % H
        self._without_tables = [self._evaluate(x, {}) for x in self._x]

    def _evaluate(self, x: np.ndarray, tables: Mapping[ir.Value, np.ndarray]) -> np.ndarray:
        known = {self._region.source: x.reshape(self._shape)}
        for operand in self._operands:
            numbers = tables.get(operand)
            shape = shape_of(operand)
            known[operand] = np.zeros(shape, np.float32) if numbers is None else numbers.reshape(shape)
        return evaluate(self._region.result, known).astype(np.float64).reshape(-1, self._H)

    def of(self, operand: ir.Value | None) -> _Term | None:
        """The term of a table, or the term without any table, where all tables are 0."""
        ones, numbers = self._without_tables
        column = np.zeros(self._H, np.int64)
        if operand is not None:
            size = math.prod(shape_of(operand))
            table = {operand: np.ones(size, np.float32)}
            columns = {operand: np.arange(size, dtype=np.float32)}
            weighted = self._evaluate(self._x[0], columns) - ones
            ones, numbers = (
                self._evaluate(x, table) - y for x, y in zip(self._x, self._without_tables, strict=True)
            )
            column = np.rint(_ratio(weighted, ones)[0]).astype(np.int64)
            if np.any(column < 0) or np.any(column >= size):
                return None
        element = _ratio(numbers, ones)
        if not np.all(ones == ones[0]) or not np.all(element == element[0]):
            return None  # heads differ
        places = np.where(ones[0] != 0, np.rint(element[0]), np.arange(self._H)).astype(np.int64)
        if np.any(places < 0) or np.any(places >= self._H):
            return None
        return _Term(places, ones[0], column)

    def agree_with(
        self,
        cos: np.ndarray,
        sin: np.ndarray,
        first: np.ndarray,
        second: np.ndarray,
        heads: int,
        tokens: TokenValues,
    ) -> bool:
        """Whether the region computes this rotation, for other operands at the last position."""
        position = tokens.capacity - 1
        tables = {
            operand: table[position]
            for operand in self._operands
            if (table := tokens.table(operand)) is not None
        }
        x = np.random.default_rng(0).standard_normal((heads, self._H)).astype(np.float32)
        want = x.copy()
        want[:, first] = x[:, first] * cos[position] - x[:, second] * sin[position]
        want[:, second] = x[:, second] * cos[position] + x[:, first] * sin[position]
        return np.allclose(self._evaluate(x.reshape(-1), tables), want, rtol=1e-5, atol=1e-5)


def _ratio(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x / y, and 0 where y is 0."""
    return np.divide(x, y, out=np.zeros_like(x), where=y != 0)
