"""ONNX as the standard has it: operators of opset 24, for any runtime that conforms to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import with_shape
from o2o.lower.onnx.builder import BOOL, FLOAT, Dim, dims
from o2o.lower.onnx.lazy_tensors import computed
from o2o.lower.onnx.per_token import Tokens
from o2o.lower.onnx.weights import Matrix


@dataclass(frozen=True)
class Tables:
    """Of a rotation: cos and sin at each position, float32 [capacity, H / 2]."""

    cos: ir.Value
    sin: ir.Value

    @classmethod
    def of(cls, tokens: Tokens, cos: ir.Value, sin: ir.Value, H: int) -> Tables | None:
        """None for what does not depend on the position alone, or turns the halves of a head differently."""
        found = []
        for value in (cos, sin):
            table = tokens.table(value)
            if (
                table is None
                or table.shape[1:] != (H,)
                or not np.array_equal(table[:, : H // 2], table[:, H // 2 :])
            ):
                return None
            found.append(tokens.op.constant(table[:, : H // 2], f"{value.name}/table", np.float32))
        return cls(*found)


@dataclass(frozen=True)
class Heads:
    """Queries, keys or values of T tokens: float32 [*front, count * H]; `tables` rotate them."""

    value: ir.Value
    count: int
    H: int
    tables: Tables | None = None


@dataclass(frozen=True)
class Cache:
    """An input [1, K, S, H], and the output that it is with new rows. layout: what Circle has it in."""

    past: ir.Value
    present: ir.Value
    layout: str


@dataclass(frozen=True)
class Attend:
    """Attention to caches after the new keys and values have been written into them."""

    q: Heads
    k: Heads
    v: Heads
    keys: Cache
    values: Cache
    scale: float
    name: str


@dataclass(frozen=True)
class Projected:
    """Attention of N heads to K, of size H, with queries and keys rotated by `tables`. They and the values
    are x [*front, D] times the matrices, plus the biases."""

    x: ir.Value
    matrices: Sequence[Matrix]
    biases: Sequence[ir.Value | None]

    N: int
    K: int
    H: int
    tables: Tables | None
    keys: Cache
    values: Cache
    scale: float
    name: str


class Standard:
    """How the parts of a model are spelled."""

    name: ClassVar[str] = "standard"
    opsets: ClassVar[dict[str, int]] = {"": 24}

    @classmethod
    def front(cls, quantized: bool) -> list[Dim]:
        """The axes in front of what one token has, of a model with or without quantised weights."""
        return ["T"]  # what Gemm takes

    def __init__(self, tokens: Tokens) -> None:
        self.tokens, self.op = tokens, tokens.op
        self._shared: dict[str, ir.Value] = {}

    def norm(self, x: ir.Value, weight: ir.Value, epsilon: float, name: str) -> ir.Value:
        """RMS_NORM over the last axis."""
        return self.op.node("RMSNormalization", [x, weight], dims(x), name=name, axis=-1, epsilon=epsilon)

    def add_norm(
        self, x: ir.Value, y: ir.Value, weight: ir.Value, epsilon: float, names: tuple[str, str]
    ) -> tuple[ir.Value, ir.Value]:
        """x + y, and RMS_NORM of it."""
        total = self.op.node("Add", [x, y], dims(x), name=names[0])
        return total, self.norm(total, weight, epsilon, names[1])

    def silu(self, x: ir.Value, name: str) -> ir.Value:
        """x times its logistic function."""
        gate = self.op.node("Sigmoid", [x], dims(x), name=f"{name}/gate")
        return self.op.node("Mul", [x, gate], dims(x), name=name)

    # weights -----------------------------------------------------------------------------------------

    def linear(self, x: ir.Value, matrix: Matrix, bias: ir.Value | None, name: str) -> ir.Value:
        """x [..., columns] times the matrix, [..., rows]."""
        first, *rest = dims(x)[:-1]
        flat = self.op.reshape(x, ["rows" if rest else first, matrix.columns])
        shape = [dims(flat)[0], matrix.rows]
        y = self.op.node("Gemm", [flat, self.numbers(matrix), bias], shape, name=name, transB=1)
        return self.op.reshape(y, [*dims(x)[:-1], matrix.rows])

    def numbers(self, matrix: Matrix) -> ir.Value:
        """The matrix as float32."""
        stored = self.stored(matrix)
        shape = [matrix.rows, matrix.columns]
        if matrix.scales is None:
            if stored.dtype == FLOAT:
                return stored
            return self._once(
                f"{matrix.name}/float32",
                lambda name: self.op.node("Cast", [stored], shape, FLOAT, name, to=int(FLOAT)),
            )
        by_row = matrix.block == matrix.columns
        scales = self.scales(matrix, by_row)
        blocks: dict[str, Any] = {"axis": 0} if by_row else {"axis": 1, "block_size": matrix.block}
        return self._once(
            f"{matrix.name}/float32",
            lambda name: self.op.node("DequantizeLinear", [stored, scales], shape, FLOAT, name, **blocks),
        )

    def stored(self, matrix: Matrix) -> ir.Value:
        """The constant [rows, columns] as it is stored."""
        tensor, shape = matrix.tensor, (matrix.rows, matrix.columns)
        if tuple(tensor.shape.numpy()) != shape:
            tensor = with_shape(tensor, shape, matrix.name)
        return self.op.once(matrix.key, lambda: tensor, matrix.name)

    def scales(self, matrix: Matrix, by_row: bool) -> ir.Value:
        """float32 [rows], or [rows, blocks]."""
        return self.scales_as(
            matrix, (matrix.rows,) if by_row else (matrix.rows, matrix.columns // matrix.block)
        )

    def scales_as(self, matrix: Matrix, shape: tuple[int, ...]) -> ir.Value:
        """The scales in `shape`; one for each of several blocks, where there is but one a row."""
        assert matrix.scales is not None
        make = matrix.scales

        def spread() -> np.ndarray:
            found = make()
            return (
                np.broadcast_to(found, shape[:2]).reshape(shape) if len(shape) > 1 else found.reshape(shape)
            )

        key = "scales", shape, *matrix.key
        return self.op.once(key, lambda: computed(spread, shape), f"{matrix.name}/scales")

    def look_up(self, ids: ir.Value, matrix: Matrix, name: str) -> ir.Value:
        """The rows of the matrix with these numbers: [*ids, columns], floats as stored or float32."""
        shape = [*dims(ids), matrix.columns]
        if matrix.scales is None:
            return self.op.node("Gather", [self.stored(matrix), ids], shape, name=name, axis=0)
        if matrix.block != matrix.columns or matrix.tensor.dtype != ir.DataType.INT8:
            return self.op.node("Gather", [self.numbers(matrix), ids], shape, name=name, axis=0)
        rows = self.op.node("Gather", [self.stored(matrix), ids], shape, name=f"{name}/rows", axis=0)
        floats = self.op.node("Cast", [rows], shape, FLOAT, f"{name}/numbers", to=int(FLOAT))
        scales = self.scales_as(matrix, (matrix.rows, 1))
        scale = self.op.node("Gather", [scales, ids], [*dims(ids), 1], name=f"{name}/scale", axis=0)
        return self.op.node("Mul", [floats, scale], shape, name=name)

    # attention ---------------------------------------------------------------------------------------

    def rotated(self, x: ir.Value, tables: Tables, name: str) -> ir.Value:
        """ROPE of x [*front, heads, H]."""
        count, H = (int(dim) for dim in dims(x)[-2:])
        turned = self.by_head(Heads(x, count, H, tables), name)
        return self.op.reshape(self.op.transpose(turned, [0, 2, 1, 3]), dims(x))

    def rotated_by(self, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        """ROPE of x [*front, heads, H] by tables that broadcast to it, spelled out."""
        shape = dims(x)
        half = int(shape[-1]) // 2
        halves = [self.op.value(name, FLOAT, [*shape[:-1], half]) for name in ("lower", "upper")]
        self.op.add("Split", [x], halves, axis=-1, num_outputs=2)
        negative = self.op.node("Neg", [halves[1]], dims(halves[1]))
        turned = self.op.node("Concat", [negative, halves[0]], shape, axis=-1)
        straight, across = (self.op.node("Mul", pair, shape) for pair in ([x, cos], [turned, sin]))
        return self.op.node("Add", [straight, across], shape, name="rotated")

    def by_head(self, heads: Heads, name: str) -> ir.Value:
        """[1, count, T, H], rotated."""
        y = self.op.reshape(heads.value, [1, "T", heads.count, heads.H], f"{name}_heads")
        y = self.op.transpose(y, [0, 2, 1, 3], f"{name}_by_head")
        if heads.tables is None:
            return y
        ids = self._once("position_ids", lambda name: self.op.reshape(self.tokens.positions, [1, "T"], name))
        operands = [y, heads.tables.cos, heads.tables.sin, ids]
        return self.op.node("RotaryEmbedding", operands, dims(y), name=f"{name}_rotated")

    def attend_projected(self, of: Projected) -> ir.Value:
        """[*front, N * H]."""
        q, k, v = (
            self.linear(of.x, matrix, bias, f"{of.name}/{matrix.name}")
            for matrix, bias in zip(of.matrices, of.biases, strict=True)
        )
        heads = Heads(q, of.N, of.H, of.tables), Heads(k, of.K, of.H, of.tables), Heads(v, of.K, of.H)
        return self.attend(Attend(*heads, of.keys, of.values, of.scale, of.name))

    def attend(self, of: Attend) -> ir.Value:
        """[*front, N * H]."""
        q, k, v = (
            self.by_head(heads, f"{of.name}/{name}")
            for heads, name in ((of.q, "q"), (of.k, "k"), (of.v, "v"))
        )
        position = self.tokens.position
        for cache, new in ((of.keys, k), (of.values, v)):
            self.op.add("TensorScatter", [cache.past, new, position], [cache.present], axis=2)
        S = dims(of.keys.past)[2]
        mask = self._once("visible", lambda name: self._visible(int(S), name))
        operands = [q, of.keys.present, of.values.present, mask]
        y = self.op.node("Attention", operands, dims(q), name=of.name, scale=of.scale)
        y = self.op.transpose(y, [0, 2, 1, 3], f"{of.name}/by_token")
        return self.op.reshape(y, [*self.tokens.front, of.q.count * of.q.H], f"{of.name}/joined")

    def _visible(self, S: int, name: str) -> ir.Value:
        """bool [T, S]: query t sees the keys 0 to position + t."""
        keys = self.op.constant(np.arange(S), "keys")
        queries = self.op.reshape(self.tokens.positions, ["T", 1], "queries")
        return self.op.node("LessOrEqual", [keys, queries], ["T", S], BOOL, name)

    def _once(self, name: str, make: Callable[[str], ir.Value]) -> ir.Value:
        """What all layers share: `make(name)`, at the first call."""
        if name not in self._shared:
            self._shared[name] = make(name)
        return self._shared[name]
