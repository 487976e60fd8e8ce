"""The form `ort`: ONNX Runtime's own operators, in the domain com.microsoft.

GroupQueryAttention rotates, updates the caches and attends in one pass over the rows in use. MatMulNBits
multiplies with stored int4 and int8 weights, and quantizes its other operand on the fly, as LiteRT does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from o2o.formats.computed_tensors import UnsignedBlocks
from o2o.lower.onnx.builder import CONTRIB, FLOAT, INT32, Dim, dims
from o2o.lower.onnx.cached_attention import CachedAttention, Heads, ProjectedAttention, Scores
from o2o.lower.onnx.norms import Norm
from o2o.lower.onnx.rotation import RopeTables
from o2o.lower.onnx.standard_form import (
    GELU,
    QUICK_GELU_FACTOR,
    StandardForm,
)
from o2o.lower.onnx.weights import Matrix, concatenate

BLOCKS = (128, 64, 32, 16)
"""Block sizes of MatMulNBits, the fastest first."""
HEAD_MULTIPLE, ROTATION_MULTIPLE = 8, 16
"""GroupQueryAttention takes H of multiples of 8. It rotates multiples of 16, if H is one, too."""
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
        self, x: ir.Value, y: ir.Value, norm: Norm, names: tuple[str, str]
    ) -> tuple[ir.Value, ir.Value]:
        total, normed = (self.op.value(name, FLOAT, dims(x)) for name in names)
        self.op.add(
            "SkipLayerNormalization" if norm.centered else "SkipSimplifiedLayerNormalization",
            [x, y, norm.weight, norm.bias],
            [normed, None, None, total],
            CONTRIB,
            epsilon=norm.epsilon,
        )
        return total, normed

    def activation(self, x: ir.Value, kind: str, name: str) -> ir.Value:
        if kind in GELU:
            return super().activation(x, kind, name)
        alpha = QUICK_GELU_FACTOR if kind == "quick_gelu" else 1.0
        return self.op.node("QuickGelu", [x], dims(x), name=name, domain=CONTRIB, alpha=alpha)

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
            is_int8 = matrix.tensor.dtype == ir.DataType.INT8
            sizes = [size for size in BLOCKS if size <= self.max_block or not is_int8]
            block = next((size for size in sizes if columns % size == 0), BLOCKS[-1])
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
        if of.q.H % HEAD_MULTIPLE:
            return super().attend(of)
        if not _rotates(of.q, of.k):
            q, k = (self._rotated(heads, f"{of.name}/{name}") for heads, name in ((of.q, "q"), (of.k, "k")))
            of = replace(of, q=q, k=k)
        operands = [
            self.op.reshape(heads.value, [1, "T", heads.count * heads.H]) for heads in (of.q, of.k, of.v)
        ]
        return self._group_query_attention(operands, of)

    def _rotated(self, heads: Heads, name: str) -> Heads:
        if heads.tables is None:
            return heads
        return Heads(self.rope(heads, f"{name}_rotated"), heads.count, heads.H)

    def attend_projected(self, of: ProjectedAttention) -> ir.Value:
        matrices, biases = of.matrices, [bias for bias in of.biases if bias is not None]
        kinds = {
            (m.tensor.dtype, m.columns, m.block == m.columns or m.block, m.dequantize_first) for m in matrices
        }
        partial_bytes = any(m.rows * m.columns * m.tensor.dtype.bitwidth % 8 for m in matrices)
        heads = Heads(of.x, of.N, of.H, of.tables)
        if (
            len(kinds) > 1
            or partial_bytes
            or len(biases) not in (0, 3)
            or of.H % HEAD_MULTIPLE
            or not _rotates(heads, heads)
        ):
            return super().attend_projected(of)
        packed = concatenate(matrices, f"{of.name}/qkv")  # one multiplication instead of three
        bias = self._concatenated(biases, f"{of.name}/bias") if biases else None
        y = self.op.reshape(self.linear(of.x, packed, bias, packed.name), [1, "T", packed.rows])
        q, k, v = Heads(y, of.N, of.H, of.tables), Heads(y, of.K, of.H, of.tables), Heads(y, of.K, of.H)
        attend = CachedAttention(q, k, v, of.keys, of.values, of.scores, of.name)
        return self._group_query_attention([y, None, None], attend)

    def _concatenated(self, vectors: Sequence[ir.Value], name: str) -> ir.Value:
        numbers = [value.const_value.numpy() for value in vectors if value.const_value is not None]
        return self.op.constant(np.concatenate(numbers), name, np.float32)

    def _group_query_attention(self, operands: Sequence[ir.Value | None], of: CachedAttention) -> ir.Value:
        """operands: q, k and v, [1, T, heads * H]; or all three in one tensor, None and None."""
        tables, scores = of.q.tables, of.scores
        row = scores.row
        last = self._shared_by_row("last_position", row, lambda name: self._last_position(row, name))
        total = self._shared_by_row("total", row, lambda name: self._total(row, name))
        rotation = self._rotation_inputs(tables) if tables is not None else [None, None]
        width = of.q.count * of.q.H
        y = self.op.value(of.name, FLOAT, [1, "T", width])
        position_ids = None  # it counts from the number of rows in use, except in a window cache
        if tables is not None and row is not self.tokens.position:
            position_ids = self._shared_value("position_ids", self._position_ids)
        optional: dict[str, Any] = {}
        if scores.softcap:
            optional["softcap"] = scores.softcap
        if scores.window:
            optional["local_window_size"] = scores.window
        if tables is not None and tables.interleaved:
            optional["rotary_interleaved"] = 1
        bias = self._attention_bias(scores)
        caches = of.keys.past, of.values.past, last, total
        self.op.add(
            "GroupQueryAttention",
            [*operands, *caches, *rotation, position_ids, bias, scores.sinks],
            [y, of.keys.present, of.values.present],
            CONTRIB,
            num_heads=of.q.count,
            kv_num_heads=of.k.count,
            scale=scores.scale,
            do_rotary=int(tables is not None),
            **optional,
        )
        return self.op.reshape(y, [*self.tokens.leading, width], f"{of.name}/concatenated")

    def _attention_bias(self, scores: Scores) -> ir.Value | None:
        """Slopes and mask of the keys in use, float32 [1, 1 or N, T, total]; None without these."""
        bias, mask = None, scores.mask
        if scores.slopes is not None:
            row = scores.row
            in_use = self._shared_by_row("keys_in_use", row, lambda name: self._keys_in_use(row, name))
            bias = self.alibi(scores.slopes, in_use, row)
        if mask is None:
            return bias
        start, end, axis = self.op.constant([0], "start"), self._end(scores.row), [-1]
        operands = [mask, start, end, self.op.constant(axis, "axis")]
        visible = self._shared_value(
            f"{mask.name}/in_use",
            lambda name: self.op.node("Slice", operands, [*dims(mask)[:-1], "total"], name=name),
        )
        return visible if bias is None else self.op.node("Add", [bias, visible], dims(bias))

    def _keys_in_use(self, row: ir.Value, name: str) -> ir.Value:
        """The numbers of the rows in use, int64 [total]."""
        end = self.op.node("Squeeze", [self._end(row)], [])
        zero, one = self.op.constant(0, "zero"), self.op.constant(1, "one")
        return self.op.node("Range", [zero, end, one], ["total"], name=name)

    def _rotation_inputs(self, tables: RopeTables) -> list[ir.Value]:
        """cos and sin of as many elements as GroupQueryAttention takes: neighbors turned by 0 are added."""
        padding = -tables.R % ROTATION_MULTIPLE // 2
        if not padding:
            return [tables.cos, tables.sin]
        padded = []
        for table, number in ((tables.cos, 1), (tables.sin, 0)):
            assert table.const_value is not None
            array = np.pad(table.const_value.numpy(), ((0, 0), (0, padding)), constant_values=number)
            padded.append(self.op.constant(array, f"{table.name}/padded", np.float32))
        return padded

    def _last_position(self, row: ir.Value, name: str) -> ir.Value:
        """The row of the last token, int32 [1]."""
        last = self.op.node("Sub", [self._end(row), self.op.constant([1], "one")], [1])
        return self.op.node("Cast", [last], [1], INT32, name, to=int(INT32))

    def _end(self, row: ir.Value) -> ir.Value:
        """The number of rows in use after this run, int64 [1]."""
        operands = [row, self.tokens.count]
        return self._shared_by_row("end", row, lambda name: self.op.node("Add", operands, [1], name=name))

    def _total(self, row: ir.Value, name: str) -> ir.Value:
        """The number of rows in use after this run, int32 []."""
        scalar = self.op.node("Squeeze", [self._end(row)], [])
        return self.op.node("Cast", [scalar], [], INT32, name, to=int(INT32))


def _rotates(q: Heads, k: Heads) -> bool:
    """Whether GroupQueryAttention can rotate queries and keys, or there is nothing to rotate."""
    tables = q.tables
    if tables is None or tables != k.tables:
        return tables is k.tables
    padded = tables.R + -tables.R % ROTATION_MULTIPLE
    if q.H % ROTATION_MULTIPLE or padded > q.H:
        return False
    return padded == tables.R or tables.interleaved
