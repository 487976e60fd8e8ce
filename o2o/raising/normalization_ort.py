"""Normalization of com.microsoft: with additions and lookups in front of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.model import shape_of
from o2o.raising.normalization import normalized, rms_norm, rms_normalization
from o2o.raising.operation import INT32, Operation, Rules


def _sum(of: Operation, bias: int) -> ir.Value:
    """input + skip, and the bias if there is one."""
    total = of.emit("ADD", of.operand(0), of.operand(1), name="sum")
    return of.emit("ADD", total, of.operand(bias), name="sum") if of.has(bias) else total


def _skip_simplified(of: Operation) -> list[ir.Value | None]:
    """SkipSimplifiedLayerNormalization(input, skip, gamma, bias): also the sum, as output 3."""
    total = _sum(of, 3)
    return [rms_norm(of, total, of.operand(2), of.get("epsilon", 1e-12)), None, None, total]


def _skip(of: Operation) -> list[ir.Value | None]:
    """SkipLayerNormalization(input, skip, gamma, beta, bias): also the sum, as output 3."""
    total = _sum(of, 4)
    last = len(shape_of(total)) - 1
    y, *_ = normalized(of, total, [last], of.get("epsilon", 1e-12))
    y = of.emit("MUL", y, of.operand(2), name="scaled")
    return [of.emit("ADD", y, of.operand(3), name="shifted") if of.has(3) else y, None, None, total]


def _embedding(of: Operation) -> list[ir.Value | None]:
    """EmbedLayerNormalization: the norm of a sum of embeddings, the number of tokens, and the sum.

    Operands: input_ids, segment_ids, word, position, segment, gamma, beta, mask, position_ids.
    """
    ids = of.cast(of.operand(0), INT32)
    total = of.emit("GATHER", of.operand(2), ids, axis=0, name="words")
    if of.has(8):
        positions = of.cast(of.operand(8), INT32)
    else:
        positions = of.constant(np.arange(shape_of(ids)[1])[None], "positions", np.int32)
    tables = [(of.operand(3), positions)]
    if of.has(1) and of.has(4):
        tables.append((of.operand(4), of.cast(of.operand(1), INT32)))
    for table, rows in tables:
        total = of.emit("ADD", total, of.emit("GATHER", table, rows, axis=0, name="looked_up"), name="sum")
    y, *_ = normalized(of, total, [2], of.get("epsilon", 1e-12))
    y = of.emit("ADD", of.emit("MUL", y, of.operand(5)), of.operand(6), name="shifted")
    count = None
    if of.has(7):
        mask = of.cast(of.operand(7), INT32)
        count = of.emit("SUM", mask, of.indices([1], "axis"), keepDims=False, name="tokens")
    return [y, count, total]


ORT_RULES: Rules = {
    "SimplifiedLayerNormalization": rms_normalization,
    "SkipSimplifiedLayerNormalization": _skip_simplified,
    "SkipLayerNormalization": _skip,
    "EmbedLayerNormalization": _embedding,
}
"""Rules of com.microsoft."""
