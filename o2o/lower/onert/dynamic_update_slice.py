"""DYNAMIC_UPDATE_SLICE, which onert lacks: as arithmetic, where it writes one row into a cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from o2o.contract import Role, role_of
from o2o.errors import ModelError
from o2o.formats.dialects import called
from o2o.lower.onert.outputs import copied
from o2o.model import Model, shape_of
from o2o.rewriting.builder import Builder, fresh_name


def legalize_dynamic_update_slice(model: Model, graph: ir.Graph, node: ir.Node) -> None:
    """What reads the cache sees each row of it, but the new one in its place; what was given out as a whole
    cache is given out as the row."""
    cache, row, start = node.inputs
    assert cache is not None
    assert row is not None
    assert start is not None
    updated = node.outputs[0]
    role = role_of(cache)
    axis = _written_axis(cache, row)
    if role is None or role.layout is None or axis != role.layout.index("T") or not cache.is_graph_input():
        raise ModelError(
            f"onert has no operator {called(model, graph, node)}, which can be spelled only where it writes "
            "one row into a cache that the o2o.contract tells"
        )
    op = Builder(graph, before=node, prefix=f"{updated.name}/")
    if updated.is_graph_output():
        _give_out(model, graph, op, updated, row, role)
    if updated.uses():
        size = shape_of(cache)[axis]
        along = [size if index == axis else 1 for index in range(len(shape_of(cache)))]
        now = op.node("GATHER", [start, op.constant([axis], "axis", np.int32)], [1], name="now", axis=0)
        now = op.reshape(now, [1] * len(along), name="position")
        assert start.dtype is not None
        places = op.constant(np.arange(size, dtype=start.dtype.numpy()).reshape(along), "places")
        here = op.node("EQUAL", [places, now], along, ir.DataType.BOOL, name="here")
        seen = op.node("SELECT_V2", [here, row, cache], shape_of(cache), cache.dtype, name="seen")
        updated.replace_all_uses_with(seen)
    graph.remove(node, safe=True)


def _written_axis(cache: ir.Value, row: ir.Value) -> int | None:
    """The axis along which `row` is one of several; None when there is not one such axis alone."""
    pairs = list(zip(shape_of(cache), shape_of(row), strict=True))
    shorter = [axis for axis, (whole, part) in enumerate(pairs) if whole != part]
    return shorter[0] if len(shorter) == 1 and pairs[shorter[0]][1] == 1 else None


def _give_out(
    model: Model, graph: ir.Graph, op: Builder, updated: ir.Value, row: ir.Value, role: Role
) -> None:
    """Let `row` be the output that `updated` was, under its name."""
    if row.is_graph_output() or row.producer() is None:  # it is something else as well
        row = copied(op, row)
    told = role_of(updated) or replace(role, kind=role.kind.removesuffix("_cache"))  # type: ignore[arg-type]
    name = updated.name
    model.replace(updated, row)
    updated.name, row.name = fresh_name(graph, f"{name}_whole"), name
    row.meta["role"] = told
    updated.meta.pop("role", None)
