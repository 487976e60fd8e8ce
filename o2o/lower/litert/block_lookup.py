"""EMBEDDING_LOOKUP in a table in blocks, which LiteRT lacks: rows are looked up as bytes and then scaled."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import with_shape
from o2o.lower.litert.block_weights import Blocks4Bit, block_of, lower_each, scales_of
from o2o.model import Model, shape_of
from o2o.rewriting.builder import Builder, add_constant, add_tensor
from o2o.rewriting.rewire import replace_output


def lower_block_lookups(model: Model, graph: ir.Graph) -> int:
    """Replace lookups in tables in blocks by arithmetic on the rows.

    Args:
        model: The model of `graph`.
        graph: Changed in place.

    Returns:
        The number of lookups replaced.
    """
    return lower_each(model, graph, "EMBEDDING_LOOKUP", _lower)


def _lower(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    ids, table = node.inputs
    assert ids is not None
    assert table is not None
    old, block = node.outputs[0], block_of(table)
    rows, columns = shape_of(table)
    scales = scales_of(table)
    op = Builder(graph, before=node, prefix=f"{old.name}/")
    count = shape_of(ids)[0]
    split, per_block = [count, columns // block, block], [count, columns // block, 1]
    if table.dtype == ir.DataType.INT4:
        numbers, shifts = _integers_of_4_bits(op, graph, table, ids, scales, block)
        scales = np.abs(scales)
    else:
        assert table.const_value is not None
        stored = add_tensor(graph, with_shape(table.const_value, (rows, columns), ""), f"{table.name}_rows")
        stored_rows = op.node("GATHER", [stored, ids], [count, columns], name="rows", axis=0)
        numbers, shifts = op.cast(stored_rows, ir.DataType.FLOAT, "integers"), None
    numbers = op.reshape(numbers, split, name="blocks")
    if shifts is not None:
        shift = op.node("GATHER", [shifts, ids], per_block[:2], name="shift", axis=0)
        numbers = op.node("ADD", [numbers, op.reshape(shift, per_block)], split, name="shifted")
    factors = add_constant(graph, scales, f"{table.name}_scales_of_rows")
    factor = op.node("GATHER", [factors, ids], per_block[:2], name="scale", axis=0)
    real = op.node("MUL", [numbers, op.reshape(factor, per_block)], split, name="scaled")
    replace_output(model, old, op.reshape(real, [count, columns], name="looked_up"))


def _integers_of_4_bits(
    op: Builder, graph: ir.Graph, table: ir.Value, ids: ir.Value, scales: np.ndarray, block: int
) -> tuple[ir.Value, ir.Value | None]:
    """Rows of integers, float32 [count, columns], and what is added to those of each block.

    The bytes are those of the weights that `block_weights` writes, so a tied head shares them.
    """
    assert table.const_value is not None
    count, columns = shape_of(ids)[0], shape_of(table)[1]
    tensor = Blocks4Bit(table.const_value, "", block, block, scales < 0, ir.DataType.UINT8)
    stored = add_tensor(graph, tensor, f"{table.name}_rows")
    size = [count, columns // 2]
    stored_rows = op.cast(
        op.node("GATHER", [stored, ids], size, name="rows", axis=0), ir.DataType.FLOAT, "bytes"
    )
    constants = {number: op.constant(number, "number", np.float32) for number in (1 / 16, 16.0, 8.0)}
    high = op.node("FLOOR", [op.node("MUL", [stored_rows, constants[1 / 16]], size)], size, name="high")
    low = op.node("SUB", [stored_rows, op.node("MUL", [high, constants[16.0]], size)], size, name="low")
    pairs = [op.reshape(half, [*size, 1], name="half") for half in (low, high)]
    both = op.node("CONCATENATION", pairs, [*size, 2], name="unsigned", axis=2)
    # Of 4 bits with a sign: 0 to 7, and then -8 to -1.
    raised = op.node("ADD", [both, constants[8.0]], [*size, 2], name="raised")
    wrapped = op.node("FLOOR_MOD", [raised, constants[16.0]], [*size, 2], name="wrapped")
    signed = op.node("SUB", [wrapped, constants[8.0]], [*size, 2], name="signed")
    shifts = (scales < 0).astype(np.float32)
    constant = add_constant(graph, shifts, f"{table.name}_shifts") if shifts.any() else None
    return op.reshape(signed, [count, columns], name="integers"), constant
