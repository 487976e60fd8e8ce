"""RoPE in ONNX: RotaryEmbedding, of ONNX or of ONNX Runtime.

ONNX's operator takes half a table, [B, T, H/2]: both halves of the rotated head have the same angles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from o2o.formats.tensors import constant_array
from o2o.model import Model, attribute, shape_of
from o2o.onnx_fusion.forms import CONTRIB, Form
from o2o.onnx_fusion.rule import OnnxRule, Site, node_after
from o2o.onnx_fusion.twin import Twin
from o2o.operators.traits import RESHAPE_OPS, is_elementwise
from o2o.rewriting.matchers import fail, producer_of
from o2o.rewriting.rope import RopeRule, match_rope


@dataclass(frozen=True)
class _Match:
    """A rotation in the ONNX graph: result and x [B, N, T, H], tables [B or 1, 1?, T, H]."""

    result: ir.Value
    x: ir.Value
    tables: tuple[ir.Value, ir.Value]
    table_rank: int
    H: int
    repeats: bool


class OnnxRopeRule(OnnxRule):
    """Fuse the rotation of x [B, N, T, H] by tables [B or 1, 1, T, H] with equal halves."""

    def __init__(self, form: Form) -> None:
        """See `OnnxRule`."""
        super().__init__(form)
        self._halves: dict[tuple[ir.Value, bool], ir.Value] = {}
        self._rows: dict[ir.Value, ir.Value] = {}

    def candidates(self, twin: Twin) -> list[ir.Node]:
        """See `OnnxRule`."""
        return RopeRule().candidates(twin.graph)

    def match(self, twin: Twin, node: ir.Node) -> _Match:
        """See `OnnxRule`."""
        rotation = match_rope(node.outputs[0])
        x, values = shape_of(rotation.x), (rotation.cos, rotation.sin)
        if len(x) != 4:
            fail("RotaryEmbedding takes a tensor of four axes", rotation.x)
        B, _, T, H = x
        for table in values:
            if shape_of(table) not in ((B, 1, T, H), (1, 1, T, H)):
                fail(f"a rotation table should be [{B} or 1, 1, {T}, {H}]", table)
            if table.dtype != rotation.x.dtype:
                fail("a rotation table has another dtype than the rotated tensor", table)
            if not has_equal_halves(table):
                fail("the halves of a rotation table are not proven to be equal", table)
        if shape_of(rotation.cos) != shape_of(rotation.sin):
            fail("the rotation tables differ in shape", rotation.cos)
        sources = [_without_head_axis(twin, table) for table in values]
        if any(len(shape_of(source)) != 3 for source in sources):
            sources = list(values)
        result = twin.original(node.outputs[0], "the result")
        operand = twin.original(rotation.x, "the operand")
        cos, sin = (twin.original(source, "a rotation table") for source in sources)
        twin.check_between([result], [operand, cos, sin])
        return _Match(
            result, operand, (cos, sin), len(shape_of(sources[0])), H, shape_of(rotation.cos)[0] != B
        )

    def apply(self, model: Model, twin: Twin, match: _Match) -> None:
        """See `OnnxRule`."""
        site = Site(model, twin, node_after([match.result]))
        cos, sin = (self._half(site, table, match) for table in match.tables)
        if self.form == "standard":
            (result,) = site.insert("RotaryEmbedding", [match.x, cos, sin], [match.result])
        else:
            rows = self._positions(site, cos)
            flat = [self._flat(site, table, match.H // 2) for table in (cos, sin)]
            (result,) = site.insert("RotaryEmbedding", [match.x, rows, *flat], [match.result], domain=CONTRIB)
        site.replace(match.result, result)

    def _half(self, site: Site, table: ir.Value, match: _Match) -> ir.Value:
        """The table as [B, T, H/2]."""
        key = table, match.repeats
        if key not in self._halves:
            half = site.compute(
                "Slice", [table, *(site.ints(n) for n in ([0], [match.H // 2], [-1]))], "half"
            )
            if match.table_rank == 4:
                half = site.compute("Squeeze", [half, site.ints([1])], "half")
            if match.repeats:
                shape = site.concat([site.dims(match.x, 0, 1), site.ints([1, 1])])
                half = site.compute("Expand", [half, shape], "half")
            self._halves[key] = half
        return self._halves[key]

    def _positions(self, site: Site, table: ir.Value) -> ir.Value:
        """[B, T]: the row of each token in a table that has one row for each token of each text."""
        if table not in self._rows:
            dims = site.dims(table, 0, 2)
            count = site.compute("ReduceProd", [dims], "tokens", ir.DataType.INT64, keepdims=0)
            numbers = site.compute(
                "Range", [site.number(0), count, site.number(1)], "rows", ir.DataType.INT64
            )
            self._rows[table] = site.compute("Reshape", [numbers, dims], "rows", ir.DataType.INT64)
        return self._rows[table]

    def _flat(self, site: Site, table: ir.Value, width: int) -> ir.Value:
        if table not in self._halves.values():
            return table
        key = table, True
        if key not in self._halves:
            self._halves[key] = site.compute("Reshape", [table, site.ints([-1, width])], "flat")
        return self._halves[key]


def has_equal_halves(value: ir.Value | None) -> bool:
    """Whether both halves of the last axis of a tensor are equal, whatever the inputs are.

    Args:
        value: A value of Circle's operators.

    Returns:
        True if that is proven.
    """
    if value is None:
        return False
    shape = shape_of(value)
    if not shape or shape[-1] % 2:
        return False
    if (array := constant_array(value)) is not None:
        half = shape[-1] // 2
        return bool(np.array_equal(array[..., :half], array[..., half:]))
    node = value.producer()
    if node is None:
        return False
    first = node.inputs[0] if node.inputs else None
    if producer_of(value, "CONCATENATION") is not None:
        if attribute(node, "axis", 0) % len(shape) == len(shape) - 1:
            return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        return all(has_equal_halves(operand) for operand in node.inputs)
    if producer_of(value, *RESHAPE_OPS, "BROADCAST_TO") is not None:
        return first is not None and shape_of(first)[-1:] == shape[-1:] and has_equal_halves(first)
    if producer_of(value, "GATHER") is not None:  # rows of a table
        axis = attribute(node, "axis", 0) % len(shape_of(first)) if first is not None else 0
        return first is not None and axis < len(shape_of(first)) - 1 and has_equal_halves(first)
    return is_elementwise(node) and all(
        operand is not None and (shape_of(operand)[-1:] in ((), (1,)) or has_equal_halves(operand))
        for operand in node.inputs
    )


def _without_head_axis(twin: Twin, table: ir.Value) -> ir.Value:
    """The table as [B or 1, T, H], if a reshape made it [B or 1, 1, T, H]; else the table."""
    batch, _, T, H = shape_of(table)
    value = table
    while (node := producer_of(value, *RESHAPE_OPS)) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
        if shape_of(value) == (batch, T, H) and twin.has(value):
            return value
    return table
