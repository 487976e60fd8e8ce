"""Results of an operator without a counterpart have the types and shapes that ONNX infers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from o2o.raising.inferred_types import inferred_types
from tests.o2o.graphs import Graph

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def node(op_type: str, outputs: int = 1, **attributes: object) -> ir.Node:
    return ir.node(op_type, [ir.Value(name="a")], attributes=attributes, num_outputs=outputs)  # type: ignore[arg-type]


def test_shapes_follow_from_operands_and_attributes() -> None:
    graph = Graph("main")
    x, kernel = graph.input("x", [2, 3, 8, 8]), graph.input("w", [5, 3, 2, 2])
    assert inferred_types(node("Conv", strides=[2, 2]), [x, kernel], 17) == [(FLOAT, (2, 5, 4, 4))]


def test_shapes_follow_from_small_constants() -> None:
    graph = Graph("main")
    x, count = graph.input("x", [7]), graph.constant("k", np.int64([3]))
    assert inferred_types(node("TopK", 2), [x, count], 17) == [(FLOAT, (3,)), (INT64, (3,))]


def test_a_shape_that_depends_on_numbers_is_not_known() -> None:
    x = Graph("main").input("x", [7])
    assert inferred_types(node("NonZero"), [x], 17) == [(INT64, None)]


@pytest.mark.parametrize("op_type", ["NoSuchOperator", "Conv"])
def test_unknown_operators_and_wrong_operands(op_type: str) -> None:
    assert inferred_types(node(op_type), [Graph("main").input("x", [7])], 17) is None
