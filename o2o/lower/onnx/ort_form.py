"""ONNX as ONNX Runtime likes it best: with its own operators, of the domain com.microsoft.

GroupQueryAttention rotates, writes and reads the caches in one pass over as many rows as there are;
MatMulNBits multiplies with int4 and int8 as they are stored, its other operand quantised on the
way, as LiteRT does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from o2o.lower.onnx.builder import CONTRIB, FLOAT, INT32, Dim, dims
from o2o.lower.onnx.lazy_tensors import Shifted
from o2o.lower.onnx.standard_form import Attend, Heads, Projected, Standard
from o2o.lower.onnx.weights import Matrix, join

BLOCKS = (128, 64, 32, 16)  # columns that MatMulNBits may take at a time, the quickest first
INT8_COMPUTE = 4  # MatMulNBits' accuracy_level


class Contrib(Standard):
    """How the parts of a model are spelled with ONNX Runtime's operators."""

    name = "ort"
    opsets: ClassVar[dict[str, int]] = {"": 24, CONTRIB: 1}

    @classmethod
    def front(cls, quantized: bool) -> list[Dim]:
        return [1, "T"] if quantized else ["T"]  # what MatMulNBits and GroupQueryAttention both take

    def add_norm(
        self, x: ir.Value, y: ir.Value, weight: ir.Value, epsilon: float, names: tuple[str, str]
    ) -> tuple[ir.Value, ir.Value]:
        total, normed = (self.op.value(name, FLOAT, dims(x)) for name in names)
        self.op.add(
            "SkipSimplifiedLayerNormalization",
            [x, y, weight],
            [normed, None, None, total],
            CONTRIB,
            epsilon=epsilon,
        )
        return total, normed

    def silu(self, x: ir.Value, name: str) -> ir.Value:
        return self.op.node("QuickGelu", [x], dims(x), name=name, domain=CONTRIB, alpha=1.0)

    # weights -----------------------------------------------------------------------------------------

    def linear(self, x: ir.Value, matrix: Matrix, bias: ir.Value | None, name: str) -> ir.Value:
        if matrix.scales is None or matrix.in_float:
            return super().linear(x, matrix, bias, name)
        stored, scales, block = self.blocks(matrix)
        return self.op.node(
            "MatMulNBits",
            [x, stored, scales, None, None, bias],
            [*dims(x)[:-1], matrix.rows],
            name=name,
            domain=CONTRIB,
            K=matrix.columns,
            N=matrix.rows,
            bits=matrix.tensor.dtype.bitwidth,
            block_size=block,
            accuracy_level=INT8_COMPUTE,
        )

    def blocks(self, matrix: Matrix) -> tuple[ir.Value, ir.Value, int]:
        """A quantised matrix in blocks of unsigned numbers, uint8 [rows, blocks, bytes of a block]; float32
        scales [rows, blocks]; the columns of a block."""
        columns = matrix.columns
        if matrix.block == columns:  # one scale a row: that of each of its blocks
            block = next((size for size in BLOCKS if columns % size == 0), BLOCKS[-1])
        else:
            block = matrix.block
        count = -(-columns // block)
        key = "blocks", block, *matrix.key
        stored = self.op.once(key, lambda: Shifted(matrix.tensor, matrix.rows, columns, block), matrix.name)
        return stored, self.scales_as(matrix, (matrix.rows, count)), block

    def look_up(self, ids: ir.Value, matrix: Matrix, name: str) -> ir.Value:
        if matrix.scales is None or matrix.in_float:
            return super().look_up(ids, matrix, name)
        # The head may be the same matrix: one constant for both, [rows, blocks, bytes of a block].
        stored, _, block = self.blocks(matrix)
        count = int(dims(stored)[1])
        rows = self.op.node(
            "GatherBlockQuantized",
            [stored, ids, self.scales_as(matrix, (matrix.rows, count, 1))],
            [*dims(ids), count, block],
            FLOAT,
            name=f"{name}/rows",
            domain=CONTRIB,
            gather_axis=0,
            quantize_axis=2,
            block_size=block,
            bits=matrix.tensor.dtype.bitwidth,
        )
        flat = self.op.reshape(rows, [*dims(ids), count * block], name)
        if count * block == matrix.columns:
            return flat
        bounds = [self.op.constant([end], "bound") for end in (0, matrix.columns, -1)]
        return self.op.node("Slice", [flat, *bounds], [*dims(ids), matrix.columns], name=name)

    # attention ---------------------------------------------------------------------------------------

    def attend(self, of: Attend) -> ir.Value:
        H = of.q.H
        if H % 8 or of.q.tables != of.k.tables:  # GroupQueryAttention knows no such heads
            return super().attend(of)
        q, k, v = of.q, of.k, of.v
        if q.tables is not None and H % 16:
            q, k = (self._rotated_before(heads, f"{of.name}/{name}") for heads, name in ((q, "q"), (k, "k")))
        operands = [self.op.reshape(heads.value, [1, "T", heads.count * H]) for heads in (q, k, v)]
        return self._grouped(operands, replace(of, q=q, k=k))

    def attend_projected(self, of: Projected) -> ir.Value:
        matrices, biases = of.matrices, [bias for bias in of.biases if bias is not None]
        kinds = {(m.tensor.dtype, m.columns, m.block == m.columns or m.block, m.in_float) for m in matrices}
        if len(kinds) > 1 or len(biases) not in (0, 3) or of.H % (8 if of.tables is None else 16):
            return super().attend_projected(of)
        packed = join(matrices, f"{of.name}/qkv")  # one product in the place of three
        bias = self._joined(biases, f"{of.name}/bias") if biases else None
        y = self.op.reshape(self.linear(of.x, packed, bias, packed.name), [1, "T", packed.rows])
        heads = Heads(y, of.N, of.H, of.tables), Heads(y, of.K, of.H, of.tables), Heads(y, of.K, of.H)
        attend = Attend(*heads, of.keys, of.values, of.scale, of.name)
        return self._grouped([y, None, None], attend)

    def _joined(self, vectors: Sequence[ir.Value], name: str) -> ir.Value:
        numbers = [value.const_value.numpy() for value in vectors if value.const_value is not None]
        return self.op.constant(np.concatenate(numbers), name, np.float32)

    def _grouped(self, operands: Sequence[ir.Value | None], of: Attend) -> ir.Value:
        """operands: q, k and v, [1, T, heads * H]; or all three in one, and None."""
        tables = [of.q.tables.cos, of.q.tables.sin] if of.q.tables is not None else []
        last = self._once("last_position", self._last_position)
        total = self._once("total", self._total)
        width = of.q.count * of.q.H
        y = self.op.value(of.name, FLOAT, [1, "T", width])
        self.op.add(
            "GroupQueryAttention",
            [*operands, of.keys.past, of.values.past, last, total, *tables],
            [y, of.keys.present, of.values.present],
            CONTRIB,
            num_heads=of.q.count,
            kv_num_heads=of.k.count,
            scale=of.scale,
            do_rotary=int(bool(tables)),
        )
        return self.op.reshape(y, [*self.tokens.front, width], f"{of.name}/joined")

    def _rotated_before(self, heads: Heads, name: str) -> Heads:
        assert heads.tables is not None
        by_head = self.op.reshape(heads.value, [*self.tokens.front, heads.count, heads.H])
        turned = self.rotated(by_head, heads.tables, f"{name}_rotated")
        joined = self.op.reshape(turned, [*self.tokens.front, heads.count * heads.H])
        return Heads(joined, heads.count, heads.H)

    def _last_position(self, name: str) -> ir.Value:
        """int32 [1]: that of the last token."""
        last = self.op.node("Sub", [self._once("end", self._end), self.op.constant([1], "one")], [1])
        return self.op.node("Cast", [last], [1], INT32, name, to=int(INT32))

    def _end(self, name: str) -> ir.Value:
        """int64 [1]: how many tokens there are then."""
        return self.op.node("Add", [self.tokens.position, self.tokens.count], [1], name=name)

    def _total(self, name: str) -> ir.Value:
        """The same as int32 []."""
        scalar = self.op.node("Squeeze", [self._once("end", self._end)], [])
        return self.op.node("Cast", [scalar], [], INT32, name, to=int(INT32))
