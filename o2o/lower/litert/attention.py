"""`o2o.attention` in TFLite builtins: all scores at once, or in blocks.

ATTENTION is expanded to it first (`o2o.rewriting.attention.expand_attention`).
"""

from __future__ import annotations

import math

import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.lower.litert.flash_attention import flash_attention
from o2o.lower.litert.sdpa import last_keys, scaled_dot_product_attention
from o2o.model import Model, shape_of
from o2o.operators.core_attention import CoreAttention, FlashBlockSizes, adaptive_blocks
from o2o.rewriting.builder import Builder
from o2o.rewriting.rewire import replace_output

FlashBlocks = FlashBlockSizes | bool | None
"""Blocks of attention: their sizes, True for the usual sizes, False for none, None for the default.

The default: the sizes in the operator's options; without these, blocks where they are faster.
"""

WINDOWS = 2
"""Caches of this many windows are not read whole by one query: copying the window's rows costs less.

`bench/decode_attention.py` measures it, and `bench/window.py` in window caches of two windows."""

LEAST_BLOCKS = 4
"""Caches of fewer blocks of keys are read at once, without a loop."""


def lower_core_attention(model: Model, graph: ir.Graph, node: ir.Node, flash: FlashBlocks = None) -> None:
    """Insert builtins in the place of `o2o.attention`.

    Args:
        model: The model of `graph`; may get subgraphs.
        graph: Changed in place; `node` stays, without uses.
        node: Attention of q [1, N, T, H] to k and v [1, K, S, H] from a position on, giving [1, T, N, H].
        flash: Blocks to compute in, without a mask.

    Raises:
        ModelError: Its operands or options are malformed.
    """
    of = CoreAttention.of(node)
    old = node.outputs[0]
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    constant = constant_array(of.position)
    start = None if constant is not None and not constant.any() else _first(op, of.position)
    if start is not None and of.mask is None and of.T == 1 and 0 < WINDOWS * of.window <= of.S:
        of, start = last_keys(op, of, start)
    blocks = _blocks(flash, of)
    if blocks is None or of.mask is not None:
        y = scaled_dot_product_attention(op, of, start)
    else:
        y = flash_attention(model, op, of, start, blocks)
    replace_output(model, old, y)


def _blocks(flash: FlashBlocks, of: CoreAttention) -> FlashBlockSizes | None:
    """The blocks to compute in; None for all at once."""
    if flash is not None:
        return adaptive_blocks(of.T) if flash is True else flash or None
    fast = fast_blocks(of.T)
    return of.blocks or (fast if of.T > 1 and LEAST_BLOCKS * fast.kv <= of.S else None)


def fast_blocks(tokens: int) -> FlashBlockSizes:
    """Return the block sizes that are fastest on XNNPACK, where the options of the operator have none.

    All keys of a block are multiplied, also those that no query sees. So blocks of keys are small. Blocks of
    queries are equally large, as far as T allows, because each size has a loop body of its own.

    Args:
        tokens: The number of queries T.

    Returns:
        The block sizes.
    """
    most = 128 if tokens < 768 else 256
    return FlashBlockSizes(math.ceil(tokens / math.ceil(tokens / most)), 64 if tokens <= 64 else 128)


def _first(op: Builder, positions: ir.Value) -> ir.Value:
    """The first of `positions`, int32 [1]."""
    if positions.dtype != ir.DataType.INT32:
        positions = op.node("CAST", [positions], shape_of(positions), ir.DataType.INT32, name="pos")
    if shape_of(positions) not in ((), (1,)):
        positions = op.reshape(positions, [math.prod(shape_of(positions))])
        positions = op.slice(positions, [0], [1], name="pos")
    return op.reshape(positions, [1])
