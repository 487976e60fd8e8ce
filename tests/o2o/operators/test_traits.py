"""The table of operator traits: each claim holds for the numpy reference kernels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o.model import CUSTOM_DOMAIN, DOMAIN
from o2o.operators import reference
from o2o.operators.attention import writes_cache
from o2o.operators.traits import (
    BUILTIN,
    LAYOUT_OPS,
    PASS_THROUGH_OPS,
    RESHAPE_OPS,
    has_side_effects,
    is_elementwise,
    lookup_operands,
    traits_of,
)
from tests.o2o.graphs import BOOL, FLOAT, INT32, Graph, call_once, loop

ELEMENTWISE = [op_type for op_type, traits in BUILTIN.items() if traits.elementwise]
UNARY = {"NEG", "ABS", "SQRT", "RSQRT", "SQUARE", "EXP", "LOG", "SIN", "COS", "TANH", "LOGISTIC", "RELU"}
UNARY |= {"FLOOR", "CEIL", "CAST", "LOGICAL_NOT"}
COMPARISONS = {"LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL", "EQUAL", "NOT_EQUAL"}


def operand_dtypes(op_type: str) -> list[ir.DataType]:
    if op_type in ("SELECT", "SELECT_V2"):
        return [BOOL, FLOAT, FLOAT]
    dtype = BOOL if op_type.startswith("LOGICAL") else FLOAT
    return [dtype] * (1 if op_type in UNARY else 2)


def evaluate(op_type: str, operands: list[np.ndarray]) -> np.ndarray:
    graph = Graph("main")
    dtypes = operand_dtypes(op_type)
    inputs = [graph.input(f"x{i}", x.shape, dtypes[i]) for i, x in enumerate(operands)]
    shape = np.broadcast_shapes(*(x.shape for x in operands))
    dtype = BOOL if op_type in COMPARISONS or op_type.startswith("LOGICAL") else FLOAT
    graph.output(graph.op(op_type, inputs, shape, dtype, "y"))
    built = graph.model().graphs[0]
    assert is_elementwise(built[0])
    return reference.run_graph(built, {f"x{i}": x for i, x in enumerate(operands)})["y"]


@pytest.mark.parametrize("op_type", ELEMENTWISE)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_elementwise_operators_are_elementwise(op_type: str, data: st.DataObject) -> None:
    """Each element of the result equals the operator on the operands' elements at that place."""
    shape = data.draw(st.tuples(*[st.integers(1, 3)] * 3))
    generator = np.random.default_rng(data.draw(st.integers(0, 999)))
    operands = []
    for dtype in operand_dtypes(op_type):
        ones = data.draw(st.tuples(*[st.booleans()] * 3)) if op_type != "SELECT" else (False,) * 3
        own = tuple(1 if one else dim for one, dim in zip(ones, shape, strict=True))
        numbers = generator.uniform(0.5, 3, own).astype(np.float32)
        operands.append(numbers < 1.5 if dtype == BOOL else numbers)
    result = evaluate(op_type, operands)
    whole = [np.broadcast_to(x, result.shape) for x in operands]
    for place in np.ndindex(*result.shape):
        alone = evaluate(op_type, [x[place].reshape(1, 1, 1) for x in whole])
        np.testing.assert_array_equal(alone.reshape(()), result[place])


def test_every_elementwise_operator_has_a_reference_kernel() -> None:
    """Proofs about positions evaluate elementwise operators."""
    for op_type in ELEMENTWISE:
        assert reference.is_pure(ir.node(op_type, [], domain=DOMAIN))


def test_no_movement_is_elementwise_and_no_reduction_either() -> None:
    moving = {op_type for op_type, traits in BUILTIN.items() if traits.movement is not None}
    others = {"SOFTMAX", "MEAN", "SUM", "REDUCE_MAX", "RMS_NORM", "ROPE", "BATCH_MATMUL", "CONCATENATION"}
    assert not {*moving, *others} & {*ELEMENTWISE}
    assert moving < {*PASS_THROUGH_OPS}
    assert {*RESHAPE_OPS} < {*LAYOUT_OPS} < moving


@pytest.mark.parametrize(
    ("condition", "operand", "elementwise"),
    [((2, 3), (2, 3), True), ((2,), (2, 3), False), ((3,), (3,), True), ((), (2, 3), True)],
)
def test_a_vector_selects_rows(
    condition: tuple[int, ...], operand: tuple[int, ...], elementwise: bool
) -> None:
    graph = Graph("main")
    values = [graph.input("c", condition, BOOL), graph.input("x", operand), graph.input("y", operand)]
    graph.output(graph.op("SELECT", values, operand, FLOAT, "z"))
    assert is_elementwise(graph.model().graphs[0][0]) == elementwise


def test_lookup_operands() -> None:
    graph = Graph("main")
    table, ids = graph.input("table", (5, 2)), graph.input("ids", (3,), INT32)
    rows = graph.op("GATHER", [table, ids], (3, 2), FLOAT, "rows")
    more = graph.op("EMBEDDING_LOOKUP", [ids, table], (3, 2), FLOAT, "more")
    graph.output(graph.op("ADD", [rows, more], (3, 2), FLOAT, "y"))
    gather, lookup, add = graph.model().graphs[0]
    assert lookup_operands(gather) == lookup_operands(lookup) == (table, ids)
    assert lookup_operands(add) is None


def test_a_custom_operator_is_not_the_builtin_of_its_name() -> None:
    assert traits_of(ir.node("ADD", [], domain=DOMAIN)).elementwise
    assert not traits_of(ir.node("ADD", [], domain=CUSTOM_DOMAIN)).elementwise
    for name in ("o2o.attention", "o2o.causal_attention"):
        assert traits_of(ir.node(name, [], domain=CUSTOM_DOMAIN)).position == 3


def test_side_effects() -> None:
    call, *_ = call_once().graphs[0]
    assert has_side_effects(call)
    assert not any(has_side_effects(node) for node in loop().graphs[0])
    silent = ir.Node(CUSTOM_DOMAIN, "Log", [ir.Value(name="x")], outputs=[ir.Value(name="")])
    assert has_side_effects(silent), "what gives no result must do something else"
    call = ir.Node(
        "circle",
        "STABLEHLO_CUSTOM_CALL",
        [],
        [ir.AttrInt64("hasSideEffect", 1)],
        outputs=[ir.Value(name="y")],
    )
    assert has_side_effects(call)


def attention(*caches: ir.Value | None) -> ir.Node:
    operands = [ir.Value(name="x"), *[None] * 7, *caches, ir.Value(name="position")]
    return ir.Node("circle", "ATTENTION", operands, outputs=[ir.Value(name="y")])


def test_attention_writes_to_its_caches() -> None:
    cache = ir.Value(name="cache")
    for node, writes in ((attention(cache, cache), True), (attention(None, None), False)):
        assert writes_cache(node) is has_side_effects(node) is writes
