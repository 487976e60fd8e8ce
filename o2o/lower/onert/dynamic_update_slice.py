"""DYNAMIC_UPDATE_SLICE of one row into a cache, as arithmetic: onert has no such operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from o2o.contract import Role, role_of
from o2o.errors import ModelError
from o2o.lower.onert.outputs import copied
from o2o.model import Model, shape_of
from o2o.rewriting.builder import Builder, fresh_name


def legalize_dynamic_update_slice(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """Replace the update of a cache by a SELECT_V2 for its readers, and by the new row as output.

    Args:
        model: The model of `graph`.
        graph: The decode graph; changed in place.
        node: DYNAMIC_UPDATE_SLICE of one row along the token axis of a cache input.

    Raises:
        ModelError: It writes anything else.
    """
    cache, row, start = node.inputs
    assert cache is not None
    assert row is not None
    assert start is not None
    updated = node.outputs[0]
    role = role_of(cache)
    axis = _written_axis(cache, row)
    if role is None or role.layout is None or axis != role.layout.index("T") or not cache.is_graph_input():
        raise ModelError(
            f"onert has no operator {model.locate(graph, node)}: it can be legalized only where it writes "
            "one row into a cache that has a role in the o2o.contract"
        )
    op = Builder(graph, before=node, prefix=f"{updated.name}/")
    if updated.is_graph_output():
        output_row(model, graph, op, updated, row, role_of(updated) or role.output_role)
    if updated.uses():
        size = shape_of(cache)[axis]
        along_axis = [size if index == axis else 1 for index in range(len(shape_of(cache)))]
        position = op.node("GATHER", [start, op.constant([axis], "axis", np.int32)], [1], name="now", axis=0)
        position = op.reshape(position, [1] * len(along_axis), name="position")
        assert start.dtype is not None
        rows = op.constant(np.arange(size, dtype=start.dtype.numpy()).reshape(along_axis), "rows")
        is_new = op.node("EQUAL", [rows, position], along_axis, ir.DataType.BOOL, name="is_new")
        seen = op.node("SELECT_V2", [is_new, row, cache], shape_of(cache), cache.dtype, name="seen")
        updated.replace_all_uses_with(seen)
    graph.remove(node, safe=True)


def _written_axis(cache: ir.Value, row: ir.Value) -> int | None:
    """The only axis along which the shapes differ, if `row` has size 1 there; else None."""
    pairs = list(zip(shape_of(cache), shape_of(row), strict=True))
    shorter = [axis for axis, (whole, part) in enumerate(pairs) if whole != part]
    return shorter[0] if len(shorter) == 1 and pairs[shorter[0]][1] == 1 else None


def output_row(
    model: Model, graph: ir.Graph, op: Builder, updated: ir.Value, row: ir.Value, role: Role
) -> None:
    """Replace an output that is an updated cache by the new row, under its name.

    Args:
        model: The model of `graph`.
        graph: Changed in place.
        op: Where to insert a copy of the row, if it needs one.
        updated: The output.
        row: The new row.
        role: The role of the row.
    """
    if row.is_graph_output() or row.producer() is None:  # it already has a name as an output or input
        row = copied(op, row)
    name = updated.name
    model.replace(updated, row)
    updated.name, row.name = fresh_name(graph, f"{name}_whole"), name
    row.meta["role"] = role
    updated.meta.pop("role", None)
