"""The form `ort`: ONNX Runtime's own operators, in the domain com.microsoft.

GroupQueryAttention rotates, updates the caches and attends in one pass over the rows in use. MatMulNBits
multiplies with stored int4 and int8 weights, and quantizes its other operand on the fly, as LiteRT does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from o2o.lower.onnx.builder import CONTRIB, FLOAT, INT32, Dim, dims
from o2o.lower.onnx.lazy_tensors import UnsignedBlocks
from o2o.lower.onnx.standard_form import CachedAttention, Heads, ProjectedAttention, StandardForm
from o2o.lower.onnx.weights import Matrix, concatenate

BLOCKS = (128, 64, 32, 16)
"""Block sizes of MatMulNBits, the fastest first."""
INT8_COMPUTE = 4
"""The accuracy_level with which MatMulNBits multiplies int8."""


class OrtForm(StandardForm):
    """Builds the parts of a decoder from ONNX Runtime's operators."""

    name = "ort"
    opsets: ClassVar[dict[str, int]] = {"": 24, CONTRIB: 1}

    @classmethod
    def leading_axes(cls, quantized: bool) -> list[Dim]:
        return [1, "T"] if quantized else ["T"]  # MatMulNBits and GroupQueryAttention both take [1, T, ...]

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
        if matrix.scales is None or matrix.dequantize_first:
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
        """Return a quantized matrix in the form that MatMulNBits takes.

        Args:
            matrix: A quantized matrix.

        Returns:
            Unsigned elements, uint8 [rows, blocks, bytes of a block]; scales, float32 [rows, blocks]; the
            block size in columns.
        """
        columns = matrix.columns
        if matrix.block == columns:  # one scale per row, repeated for each block
            block = next((size for size in BLOCKS if columns % size == 0), BLOCKS[-1])
        else:
            block = matrix.block
        count = -(-columns // block)
        key = "blocks", block, *matrix.key
        stored = self.op.constant_once(
            key, lambda: UnsignedBlocks(matrix.tensor, matrix.rows, columns, block), matrix.name
        )
        return stored, self.scales(matrix, (matrix.rows, count)), block

    def embedding(self, ids: ir.Value, matrix: Matrix, name: str) -> ir.Value:
        if matrix.scales is None or matrix.dequantize_first:
            return super().embedding(ids, matrix, name)
        # A tied head shares this constant, [rows, blocks, bytes of a block].
        stored, _, block = self.blocks(matrix)
        count = int(dims(stored)[1])
        rows = self.op.node(
            "GatherBlockQuantized",
            [stored, ids, self.scales(matrix, (matrix.rows, count, 1))],
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

    def attend(self, of: CachedAttention) -> ir.Value:
        H = of.q.H
        if H % 8 or of.q.tables != of.k.tables:  # GroupQueryAttention does not support these
            return super().attend(of)
        q, k, v = of.q, of.k, of.v
        if q.tables is not None and H % 16:
            q, k = (
                self._with_rope_applied(heads, f"{of.name}/{name}") for heads, name in ((q, "q"), (k, "k"))
            )
        operands = [self.op.reshape(heads.value, [1, "T", heads.count * H]) for heads in (q, k, v)]
        return self._group_query_attention(operands, replace(of, q=q, k=k))

    def attend_projected(self, of: ProjectedAttention) -> ir.Value:
        matrices, biases = of.matrices, [bias for bias in of.biases if bias is not None]
        kinds = {
            (m.tensor.dtype, m.columns, m.block == m.columns or m.block, m.dequantize_first) for m in matrices
        }
        partial_bytes = any(m.rows * m.columns * m.tensor.dtype.bitwidth % 8 for m in matrices)
        if (
            len(kinds) > 1
            or partial_bytes
            or len(biases) not in (0, 3)
            or of.H % (8 if of.tables is None else 16)
        ):
            return super().attend_projected(of)
        packed = concatenate(matrices, f"{of.name}/qkv")  # one multiplication instead of three
        bias = self._concatenated(biases, f"{of.name}/bias") if biases else None
        y = self.op.reshape(self.linear(of.x, packed, bias, packed.name), [1, "T", packed.rows])
        heads = Heads(y, of.N, of.H, of.tables), Heads(y, of.K, of.H, of.tables), Heads(y, of.K, of.H)
        attend = CachedAttention(*heads, of.keys, of.values, of.scale, of.name)
        return self._group_query_attention([y, None, None], attend)

    def _concatenated(self, vectors: Sequence[ir.Value], name: str) -> ir.Value:
        numbers = [value.const_value.numpy() for value in vectors if value.const_value is not None]
        return self.op.constant(np.concatenate(numbers), name, np.float32)

    def _group_query_attention(self, operands: Sequence[ir.Value | None], of: CachedAttention) -> ir.Value:
        """operands: q, k and v, [1, T, heads * H]; or all three in one tensor, None and None."""
        tables = [of.q.tables.cos, of.q.tables.sin] if of.q.tables is not None else []
        last = self._shared_value("last_position", self._last_position)
        total = self._shared_value("total", self._total)
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
        return self.op.reshape(y, [*self.tokens.leading, width], f"{of.name}/concatenated")

    def _with_rope_applied(self, heads: Heads, name: str) -> Heads:
        assert heads.tables is not None
        by_head = self.op.reshape(heads.value, [*self.tokens.leading, heads.count, heads.H])
        rotated = self.rope(by_head, heads.tables, f"{name}_rotated")
        return Heads(
            self.op.reshape(rotated, [*self.tokens.leading, heads.count * heads.H]), heads.count, heads.H
        )

    def _last_position(self, name: str) -> ir.Value:
        """The position of the last token, int32 [1]."""
        last = self.op.node("Sub", [self._shared_value("end", self._end), self.op.constant([1], "one")], [1])
        return self.op.node("Cast", [last], [1], INT32, name, to=int(INT32))

    def _end(self, name: str) -> ir.Value:
        """The number of tokens after this run, int64 [1]."""
        return self.op.node("Add", [self.tokens.position, self.tokens.count], [1], name=name)

    def _total(self, name: str) -> ir.Value:
        """The number of tokens after this run, int32 []."""
        scalar = self.op.node("Squeeze", [self._shared_value("end", self._end)], [])
        return self.op.node("Cast", [scalar], [], INT32, name, to=int(INT32))
