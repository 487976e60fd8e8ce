"""Inferred shapes are what operators compute, and operands that do not fit are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from o2o.model import Model, shape_of
from o2o.operators import reference
from o2o.operators.shape_inference import Mismatch, infer_shapes
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import BOOL, FLOAT, INT32, Graph
from tests.o2o.operators.test_reference import CASES, Case


def nodes(model: Model) -> list[ir.Node]:
    return [node for graph in model.graphs for node in graph]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_what_the_operator_computes(case: Case) -> None:
    """The cases of the reference, which is compared with LiteRT."""
    model, feeds = case.model()
    (node,) = nodes(model)
    inferred = infer_shapes(node)
    if inferred is None:
        to_the_end = case.op == "SLICE" and -1 in case.inputs[2]  # of a size that begins at a computed place
        assert case.op == "RESHAPE" or to_the_end
        return
    results = reference.run_graph(model.graphs[0], feeds)
    assert [tuple(shape or ()) for shape in inferred] == [numbers.shape for numbers in results.values()]


@pytest.mark.parametrize("layout", ["BNTH", "BTNH"])
def test_attention(layout: str) -> None:
    for node in nodes(attention(Form(T=3, layout=layout))):  # type: ignore[arg-type]
        inferred = infer_shapes(node)
        if inferred is not None:
            assert list(inferred) == [shape_of(value) for value in node.outputs]


def built(op: str, inputs: Sequence[Any], outputs: int = 1, **attributes: Any) -> ir.Node:
    """A node of inputs (tuples: shapes) and constants (lists: numbers)."""
    graph = Graph("main")
    values = [
        graph.input(f"x{k}", item, BOOL if op.startswith("SELECT") and k == 0 else FLOAT)
        if isinstance(item, tuple)
        else graph.constant(f"c{k}", np.int32(item))
        for k, item in enumerate(inputs)
    ]
    options = [
        ir.AttrInt64s(name, item) if isinstance(item, list) else ir.AttrInt64(name, item)
        for name, item in attributes.items()
    ]
    return graph.node(op, values, [graph.value(f"y{k}", [1]) for k in range(outputs)], options)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (("ADD", [(2, 3), (2, 4)]), "[2,3] and [2,4] do not broadcast"),
        (("SELECT", [(5,), (2, 3), (2, 3)]), "5 conditions for 2 rows"),
        (("RESHAPE", [(2, 3), [4, 2]]), "6 elements do not fit into [4,2]"),
        (("RESHAPE", [(2, 3), [-1, 4]]), "6 elements do not fit into [-1,4]"),
        (("EXPAND_DIMS", [(2, 3), [4]]), "axis 4 is out of range for 3 axes"),
        (("TRANSPOSE", [(2, 3), [0, 0]]), "[0,0] is no permutation of 2 axes"),
        (("TRANSPOSE", [(2, 3), [0, 2]]), "axis 2 is out of range for 2 axes"),
        (("BROADCAST_TO", [(2, 3), [2, 4]]), "[2,3] and [2,4] do not broadcast"),
        (("BROADCAST_TO", [(2, 3), [1, 3]]), "[2,3] does not broadcast to [1,3]"),
        (("PACK", [(2, 3), (2, 4)]), "are not equal"),
        (("SLICE", [(2, 3), [0, 2], [2, 2]]), "2 to 4 is out of range on axis 1 of [2,3]"),
        (("SLICE", [(2, 3), [0], [2]]), "1 sizes for 2 axes"),
        (("MEAN", [(2, 3), [2]]), "axis 2 is out of range for 2 axes"),
        (("BATCH_MATMUL", [(2, 3), (4, 5)]), "3 columns times 4 rows"),
        (("FULLY_CONNECTED", [(2, 3), (5, 4)]), "[2,3] times weights of 4 columns"),
        (("FULLY_CONNECTED", [(2, 3), (5, 3), (4,)]), "a bias of 4 for 5 rows"),
        (("DYNAMIC_UPDATE_SLICE", [(4, 3), (5, 3), [0, 0]]), "the update [5,3] does not fit into [4,3]"),
        (("DYNAMIC_UPDATE_SLICE", [(4, 3), (1, 3), [0]]), "1 start indices for 2 axes"),
        (("RMS_NORM", [(2, 3), (4,)]), "a weight of 4 for 3 columns"),
        (("ROPE", [(1, 2, 3, 4), (5, 1, 3, 4), (1, 1, 3, 4)]), "[5,1,3,4] does not broadcast to [1,2,3,4]"),
        (("EMBEDDING_LOOKUP", [(1, 2), (5, 4)]), "the ids [1,2] are no vector"),
        (("PAD", [(2, 3), [0, 0, 1]]), "3 paddings for 2 axes"),
        (("TILE", [(2, 3), [1]]), "an operand is missing, or its rank is wrong"),
        (("FULLY_CONNECTED", [(2, 3)]), "an operand is missing, or its rank is wrong"),
    ],
)
def test_operands_that_do_not_fit(node: tuple[str, list[Any]], message: str) -> None:
    with pytest.raises(Mismatch) as error:
        infer_shapes(built(*node))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (built("CONCATENATION", [(2, 3), (2, 4)], axis=0), "[2,3] and [2,4] differ in other axes than 0"),
        (built("SQUEEZE", [(2, 3)], squeezeDims=[1]), "axis 1 of [2,3] is not 1"),
        (built("SPLIT", [[1], (2, 3)], outputs=2), "axis 1 of [2,3] has no 2 equal parts"),
        (built("SPLIT_V", [(2, 3), [1, 1], [1]], outputs=2), "the sizes [1,1] do not add up to 3"),
        (built("UNPACK", [(2, 3)], outputs=3, axis=0), "3 results for 2 slices"),
        (built("GATHER", [(2, 3), (4,)], axis=2), "axis 2 is out of range for 2 axes"),
    ],
)
def test_options_that_do_not_fit(node: ir.Node, message: str) -> None:
    with pytest.raises(Mismatch) as error:
        infer_shapes(node)
    assert message in str(error.value)


def test_other_operators() -> None:
    assert infer_shapes(built("SPLIT_V", [(2, 3), [1, -1], [1]], outputs=2)) == [(2, 1), (2, 2)]
    assert infer_shapes(built("UNPACK", [(2, 3)], outputs=2, axis=0)) == [(3,), (3,)]
    assert infer_shapes(built("ARG_MAX", [(2, 3), [1]])) == [(2,)]
    assert infer_shapes(built("PAD", [(2, 3), [0, 1, 2, 3]])) == [(3, 8)]
    assert infer_shapes(built("STRIDED_SLICE", [(2, 3), [0, 1], [1, 2], [1, 1]], shrinkAxisMask=1)) == [(1,)]


def test_what_is_unknown() -> None:
    assert infer_shapes(built("CONV_2D", [(1, 2, 2, 1), (1, 1, 1, 1)])) is None
    graph = Graph("main")
    x, shape = graph.input("x", [2, 3]), graph.input("shape", [2], INT32)
    node = graph.node("BROADCAST_TO", [x, shape], [graph.value("y", [4, 3])])
    assert infer_shapes(node) is None
    x.meta["fields"] = {"shapeSignature": np.int32([-1, 3])}
    assert infer_shapes(graph.node("ABS", [x], [graph.value("z", [2, 3])])) is None
