"""The attention of com.microsoft: GroupQueryAttention, MultiHeadAttention, Attention.

Caches are shared buffers or grow. A shared buffer has the length of the result; its new rows are written at
the position. A past of P rows that grows to P + T gets them behind its valid rows.
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import shape_of
from o2o.raising.attention_onnx import by_head
from o2o.raising.cache_rows import appended, extended, first_position, write_at
from o2o.raising.dot_product import BIASED, CAPPED, WEIGHTS, Visibility, attend
from o2o.raising.normalization import rms_norm
from o2o.raising.operation import BOOL, FLOAT, INT32, Operation, Rules
from o2o.raising.rotation import rotate, tables_of_positions


class _Grouped(IntEnum):
    """The operands of GroupQueryAttention."""

    QUERY = 0
    KEY = 1
    VALUE = 2
    PAST_KEY = 3
    PAST_VALUE = 4
    SEQLENS_K = 5
    TOTAL_LENGTH = 6
    COS_CACHE = 7
    SIN_CACHE = 8
    POSITION_IDS = 9
    ATTENTION_BIAS = 10
    HEAD_SINK = 11
    K_SCALE = 12
    V_SCALE = 13
    Q_NORM = 14
    K_NORM = 15


def _grouped_query(of: Operation) -> list[ir.Value]:
    """GroupQueryAttention, with its operands in the order of `_Grouped`.

    `sliding_window_cache` changes nothing: up to the number of rows, each position has a row of its own.
    """
    N, K = of.get("num_heads", 0), of.get("kv_num_heads", 0)
    if of.has(_Grouped.K_SCALE) or of.has(_Grouped.V_SCALE):
        of.refuse("its caches are quantized")
    q, k, v = _grouped_operands(of, N, K)
    if of.has(_Grouped.Q_NORM):
        epsilon = of.get("qk_norm_epsilon", 1e-6)
        q = rms_norm(of, q, of.operand(_Grouped.Q_NORM), epsilon)
        k = rms_norm(of, k, of.operand(_Grouped.K_NORM), epsilon)
    B, _, T, H = shape_of(q)
    position = _position(of, B, T)
    if of.get("do_rotary", 0):
        given = of.operand(_Grouped.POSITION_IDS) if of.has(_Grouped.POSITION_IDS) else None
        positions = _positions(of, position, B, T) if given is None else given
        tables = (of.operand(index) for index in (_Grouped.COS_CACHE, _Grouped.SIN_CACHE))
        cos, sin = (tables_of_positions(of, table, positions, T) for table in tables)
        interleaved = bool(of.get("rotary_interleaved", 0))
        q, k = (rotate(of, x, cos, sin, interleaved) for x in (q, k))
    keys = _present(of, _Grouped.PAST_KEY, 1, k, position)
    values = _present(of, _Grouped.PAST_VALUE, 2, v, position)
    window, is_causal = of.get("local_window_size", -1), bool(of.get("causal", 1))
    length = None
    if not is_causal:
        length = of.emit("ADD", _vector(of, position), of.indices([T], "tokens"), name="length")
    visibility = Visibility(position, is_causal, window - 1 if window > 0 else None, length=length)
    S = shape_of(keys)[2]
    bias = (
        [extended(of, of.operand(_Grouped.ATTENTION_BIAS), S, 3)] if of.has(_Grouped.ATTENTION_BIAS) else []
    )
    sinks = of.operand(_Grouped.HEAD_SINK) if of.has(_Grouped.HEAD_SINK) else None
    if sinks is None and of.get("smooth_softmax", 0) == 1:
        sinks = of.constant(np.zeros(N), "sinks", np.float32)
    scale = of.get("scale", 0.0) or 1 / math.sqrt(H)
    wanted = {1: BIASED, 2: WEIGHTS}.get(of.get("qk_output", 0))
    softcap = of.get("softcap", 0.0)
    result = attend(of, q, keys, values, scale, visibility, bias, softcap, sinks, wanted)
    y = of.reshape(result.y, [B, T, N * H])
    return [y, keys, values, *([result.scores] if result.scores is not None else [])]


def _grouped_operands(of: Operation, N: int, K: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Queries [B, N, T, H], keys and values [B, K, T, H]; from one operand if they are packed."""
    q = of.operand(_Grouped.QUERY)
    if of.has(_Grouped.KEY):
        k, v = of.operand(_Grouped.KEY), of.operand(_Grouped.VALUE)
        return by_head(of, q, N), by_head(of, k, K), by_head(of, v, K)
    B, T, D = shape_of(q)
    if not K or D % (N + 2 * K):
        of.refuse(f"{N} + 2 * {K} heads do not divide {D} features")
    H = D // (N + 2 * K)
    parts, start = [], 0
    for heads in (N, K, K):
        size = [B, T, heads * H]
        parts.append(by_head(of, of.op.slice(q, [0, 0, start], size, "unpacked"), heads))
        start += heads * H
    return parts[0], parts[1], parts[2]


def _position(of: Operation, B: int, T: int) -> int | ir.Value:
    """The position of the first query: seqlens_k + 1 - T, int32 [B]; 0 for the first tokens of a text."""
    if not of.has(_Grouped.PAST_KEY) or shape_of(of.operand(_Grouped.PAST_KEY))[2] == 0:
        return 0
    lengths = of.cast(of.operand(_Grouped.SEQLENS_K), INT32)
    numbers = constant_array(lengths)
    if numbers is not None and B == 1:
        return int(numbers.reshape(-1)[0]) + 1 - T
    position, _ = first_position(of, of.reshape(lengths, [B]), T - 1)
    if B > 1 and T > 1 and of.has(_Grouped.TOTAL_LENGTH):  # shorter first prompts are padded at their end
        total = of.reshape(of.cast(of.operand(_Grouped.TOTAL_LENGTH), INT32), [1])
        is_first = of.emit("EQUAL", total, of.indices([T], "tokens"), dtype=BOOL, name="is_first")
        zero = of.indices([0], "zero")
        position = of.emit("SELECT_V2", is_first, zero, position, dtype=INT32, name="position")
    return position


def _vector(of: Operation, position: int | ir.Value) -> ir.Value:
    return of.indices([position], "position") if isinstance(position, int) else position


def _positions(of: Operation, position: int | ir.Value, B: int, T: int) -> ir.Value:
    """The positions of all tokens, int32 [B or 1, T]."""
    steps = np.arange(T, dtype=np.int32)[None]
    if isinstance(position, int):
        return of.constant(steps + position, "positions", np.int32)
    first = of.reshape(position, [B, 1])
    return first if T == 1 else of.emit("ADD", first, of.constant(steps, "steps", np.int32), name="positions")


def _present(of: Operation, index: int, output: int, new: ir.Value, position: int | ir.Value) -> ir.Value:
    """The cache with the new rows, [B, K, S, H]."""
    past = of.operand(index) if of.has(index) else None
    T, P = shape_of(new)[2], shape_of(past)[2] if past is not None else 0
    declared = of.node.outputs[output].shape if output < len(of.node.outputs) else None
    length = declared[2] if declared is not None and len(declared) == 4 else None
    S = length if isinstance(length, int) else max(P, T)
    if past is None or P == 0:
        return extended(of, new, S, 2)
    if S < P:
        of.refuse(f"its caches become shorter: {P} rows, and then {S}")
    if position == P and S == P + T:
        return appended(of, past, new, 2)
    return write_at(of, extended(of, past, S, 2), new, position, 2)


def _multi_head(of: Operation) -> list[ir.Value]:
    """MultiHeadAttention(query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value,
    past_sequence_length, cache_indirection)."""
    if of.has(9):
        of.refuse("it reads caches in the order of beams")
    N = of.get("num_heads", 0)
    q, k, v = _multi_head_operands(of, N)
    T = shape_of(q)[2]
    B, _, _, H = shape_of(q)
    past = of.operand(6) if of.has(6) else None
    position: int | ir.Value = shape_of(past)[2] if past is not None else 0
    if of.has(8):
        position = of.reshape(of.cast(of.operand(8), INT32), [1])
        k, v = (write_at(of, of.operand(index), x, position, 2) for index, x in ((6, k), (7, v)))
    elif past is not None:
        k, v = (appended(of, of.operand(index), x, 2) for index, x in ((6, k), (7, v)))
    S = shape_of(k)[2]
    bias = [of.operand(5)] if of.has(5) else []
    length = None
    if of.has(4):
        length = _key_mask(of, of.operand(4), bias, B, T, S)
    is_causal = bool(of.get("unidirectional", 0))
    if of.has(8) and not is_causal and length is None:
        length = of.emit("ADD", _vector(of, position), of.indices([T], "tokens"), name="length")
    visibility = Visibility(position, is_causal, length=length)
    scale = of.get("scale", 0.0) or 1 / math.sqrt(H)
    wanted = CAPPED if len(of.node.outputs) > 3 and of.node.outputs[3].name else None
    result = attend(of, q, k, v, scale, visibility, bias, scores=wanted)
    y = of.reshape(result.y, [B, T, N * shape_of(v)[3]])
    return [y, k, v, *([result.scores] if result.scores is not None else [])]


def _multi_head_operands(of: Operation, N: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """q, k and v by head, with the bias added, from any of the packed forms."""
    q = of.operand(0)
    if len(shape_of(q)) == 5:  # [B, T, N, 3, H]
        parts = [_packed(of, q, part) for part in range(3)]
    elif len(shape_of(of.operand(1))) == 5:
        parts = [q, *(_packed(of, of.operand(1), part) for part in range(2))]
    else:
        parts = [q, of.operand(1), of.operand(2)]
    if of.has(3):
        start, bias = 0, of.operand(3)
        for number, part in enumerate(parts):
            if len(shape_of(part)) == 4:
                of.refuse("it adds a bias to keys of the form [B, N, T, H]")
            size = shape_of(part)[2]
            own = of.op.slice(bias, [start], [size], "bias")
            parts[number] = of.emit("ADD", part, own, name="biased")
            start += size
    by_heads = [part if len(shape_of(part)) == 4 else by_head(of, part, N) for part in parts]
    return by_heads[0], by_heads[1], by_heads[2]


def _packed(of: Operation, x: ir.Value, part: int) -> ir.Value:
    """One part of [B, T, N, parts, H] as [B, T, N * H]."""
    B, T, N, _, H = shape_of(x)
    chosen = of.op.slice(x, [0, 0, 0, part, 0], [B, T, N, 1, H], "unpacked")
    return of.reshape(chosen, [B, T, N * H])


def _key_mask(of: Operation, mask: ir.Value, bias: list[ir.Value], B: int, T: int, S: int) -> ir.Value | None:
    """Add a mask of keys to `bias`, or return the number of valid keys of each text, int32 [B]."""
    mask = of.cast(mask, INT32)
    shape = shape_of(mask)
    if shape == (B,) and len(shape) == 1:
        return mask
    filled = of.constant(of.get("mask_filter_value", -10000.0), "filter", np.float32)
    if len(shape) == 2 and shape[0] == B:
        mask, shape = of.reshape(mask, [B, 1, 1, shape[1]]), (B, 1, 1, shape[1])
    elif len(shape) == 3:
        mask, shape = of.reshape(mask, [B, 1, *shape[1:]]), (B, 1, *shape[1:])
    elif len(shape) != 4:
        of.refuse(f"its mask is {list(shape)}: it holds the starts of texts")
    if len(shape) == 4 and shape[2:] != (T, S) and shape[2] not in (1, T):
        of.refuse(f"its mask is {list(shape)}, for {T} queries and {S} keys")
    if shape[3] != S:
        of.refuse(f"its mask is {list(shape)}, for {S} keys")
    is_valid = of.emit("NOT_EQUAL", mask, of.indices(0, "zero"), dtype=BOOL, name="is_valid")
    zero = of.constant(0, "zero", np.float32)
    bias.append(of.emit("SELECT_V2", is_valid, zero, filled, dtype=FLOAT, name="mask"))
    return None


def _fused(of: Operation) -> list[ir.Value]:
    """Attention(input, weights, bias, mask_index, past, attention_bias, past_sequence_length)."""
    x, weights = of.operand(0), of.operand(1)
    B, T, D = shape_of(x)
    N = of.get("num_heads", 0)
    total = shape_of(weights)[1]
    sizes = list(of.get("qkv_hidden_sizes") or [total // 3] * 3)
    if sum(sizes) != total or any(size % N for size in sizes) or len(shape_of(weights)) != 2:
        of.refuse(f"its weights {list(shape_of(weights))} are not of {N} heads")
    if of.get("do_rotary", 0):
        of.refuse("it computes its own rotation")
    y = of.emit("BATCH_MATMUL", of.reshape(x, [B * T, D]), weights, name="projected")
    y = of.reshape(y, [B, T, total])
    if of.has(2):
        y = of.emit("ADD", y, of.operand(2), name="biased")
    parts, start = [], 0
    for size in sizes:
        parts.append(by_head(of, of.op.slice(y, [0, 0, start], [B, T, size], "part"), N))
        start += size
    q, k, v = parts
    position: int | ir.Value = 0
    present = None
    if of.has(4):
        past = of.operand(4)
        P, H = shape_of(past)[3:]
        halves = [of.op.slice(past, [half, 0, 0, 0, 0], [1, B, N, P, H], "past") for half in (0, 1)]
        caches = [of.reshape(half, [B, N, P, H]) for half in halves]
        position = P
        if of.has(6) and of.get("past_present_share_buffer", 0):
            position = of.reshape(of.cast(of.operand(6), INT32), [1])
            k, v = (write_at(of, caches[part], new, position, 2) for part, new in enumerate((k, v)))
        else:
            k, v = (appended(of, cache, new, 2) for cache, new in zip(caches, (k, v), strict=True))
    if len(of.node.outputs) > 1 and of.node.outputs[1].name:
        rows = [of.reshape(cache, [1, *shape_of(cache)]) for cache in (k, v)]
        present = of.emit("CONCATENATION", *rows, axis=0, name="present")
    S = shape_of(k)[2]
    bias = [of.operand(5)] if of.has(5) else []
    length = _key_mask(of, of.operand(3), bias, B, T, S) if of.has(3) else None
    visibility = Visibility(position, bool(of.get("unidirectional", 0)), length=length)
    scale = of.get("scale", 0.0) or 1 / math.sqrt(shape_of(q)[3])
    result = attend(of, q, k, v, scale, visibility, bias)
    y = of.reshape(result.y, [B, T, N * shape_of(v)[3]])
    return [y] if present is None else [y, present]


ORT_RULES: Rules = {
    "GroupQueryAttention": _grouped_query,
    "MultiHeadAttention": _multi_head,
    "Attention": _fused,
}
"""Rules of com.microsoft."""
