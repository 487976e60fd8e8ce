"""fuse.bmm_lhs_const: a constant left operand becomes FULLY_CONNECTED's weights, and nothing changes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o import formats
from o2o.contract import Role
from o2o.model import CUSTOM_DOMAIN, Format, Model
from tests.o2o import graphs
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import Graph, assert_means_the_same, operators, weights


@dataclass(frozen=True)
class Form:
    """A [M, K] times x [*batch, K, N], with leading axes of size 1 on A, transposed operands and results."""

    M: int = 3
    K: int = 4
    N: int = 5
    batch: tuple[int, ...] = (2,)
    ones: int = 1  # batch axes of A
    adjoint_lhs: bool = False
    adjoint_rhs: bool = False
    transposed: bool = False  # a TRANSPOSE of the result's last two axes follows
    format: Format = "circle"
    broken: str = ""


BROKEN = {
    "by batch": "the constant differs from batch to batch",
    "integers": "it computes INT32, not floats",
    "batch axes added": "the constant adds batch axes",
    "quantized": "the constant does not hold floats",
    "of halves": "the operands differ in dtype",
}


def build(form: Form) -> Model:
    broken, graph = form.broken, Graph("main")
    M, K, N, batch = form.M, form.K, form.N, list(form.batch)
    left = weights(*[1] * form.ones, M, K)
    if broken == "by batch":
        left = weights(*batch, M, K)
    if form.adjoint_lhs:
        left = left.swapaxes(-1, -2).copy()
    dtype = ir.DataType.FLOAT
    if broken == "integers":
        left, dtype = left.astype(np.int32), ir.DataType.INT32
    if broken == "quantized":
        left = left.astype(np.int8)
    if broken == "of halves":
        left = left.astype(np.float16)
    constant = graph.constant("A", left)
    if broken == "quantized":
        constant.meta["fields"] = {"quantization": graphs.per_channel([0.5])}
    x = graph.input("x", [*batch, N, K] if form.adjoint_rhs else [*batch, K, N], dtype)
    shape = [*[1] * max(form.ones - len(batch), 0), *batch, M, N]
    y = graph.op(
        "BATCH_MATMUL",
        [constant, x],
        shape,
        dtype,
        "y",
        adjointLhs=form.adjoint_lhs,
        adjointRhs=form.adjoint_rhs,
    )
    if form.transposed:
        rank = len(shape)
        axes = graph.constant("axes", np.int32([*range(rank - 2), rank - 1, rank - 2]))
        y = graph.op("TRANSPOSE", [y, axes], [*shape[:-2], N, M], name="turned")
    y.meta["role"] = Role("logits")
    graph.output(y, graph.op("NEG", [y], list(y.shape.numpy())))  # type: ignore[union-attr]
    return graph.model(format=form.format)


def fused(form: Form) -> tuple[Model, Model]:
    from o2o.filters.fuse_bmm_lhs_const import FuseBmmLhsConst

    before, after = build(form), build(form)
    filter_ = FuseBmmLhsConst()
    filter_.apply(after, filter_.parser().parse_args([]))
    return before, formats.loads(formats.dumps(after))


@settings(max_examples=60, deadline=None)
@given(
    form=st.builds(
        Form,
        *[st.integers(1, 4)] * 3,
        batch=st.lists(st.integers(1, 3), max_size=2).map(tuple),
        ones=st.just(0),
        adjoint_lhs=st.booleans(),
        adjoint_rhs=st.booleans(),
        transposed=st.booleans(),
        format=st.sampled_from(["circle", "tflite"]),
    ),
    ones=st.integers(0, 2),
)
def test_every_form_is_fused_and_means_the_same(form: Form, ones: int) -> None:
    before, after = fused(replace(form, ones=min(ones, len(form.batch))))
    assert operators(after)["BATCH_MATMUL"] == 0
    assert operators(after)["FULLY_CONNECTED"] == 1
    if 1 in (form.M, form.N):  # then the result needs no moving, unless it came with a TRANSPOSE
        assert operators(after)["TRANSPOSE"] <= (1 not in (form.K, form.N))
    assert_means_the_same(before, after)


def test_the_transpose_behind_it_is_what_comes_out(command: Command) -> None:
    after = command(build(Form(transposed=True)))
    assert operators(after) == {"TRANSPOSE": 1, "FULLY_CONNECTED": 1, "NEG": 1}, "x is turned, y is not"
    assert command.said == "fuse.bmm_lhs_const.py: main: fused 1 product\n"
    (signature,) = after.signatures
    assert list(signature.outputs) == ["turned", "neg"]
    assert signature.outputs["turned"].meta["role"] == Role("logits")
    assert signature.outputs["turned"].producer().op_type == "FULLY_CONNECTED"
    assert after.history[-1]["filter"] == "fuse.bmm_lhs_const.py"


@pytest.mark.parametrize("form", [Form(K=1), Form(N=1)], ids=["K=1", "N=1"])
@pytest.mark.parametrize("transposed", [True, False])
def test_rotary_frequencies_times_positions_need_no_transpose_of_x(form: Form, transposed: bool) -> None:
    before, after = fused(replace(form, transposed=transposed))
    assert operators(after)["TRANSPOSE"] == (0 if transposed or form.N == 1 else 1)
    assert_means_the_same(before, after)


def test_another_user_keeps_the_constant(command: Command) -> None:
    """Its bytes are stored once all the same."""
    model = build(Form(M=64, K=64))
    graph = model.graphs[0]
    graph_ = Graph("more")
    graph_.ir = graph
    other = graph.initializers["A"]
    graph_.output(graph_.op("ABS", [other], [1, 64, 64], name="other"))
    model.signatures[0].outputs["other"] = graph.outputs[-1]
    before = formats.loads(formats.dumps(model))
    size = len(formats.dumps(model))
    after = command(model)
    assert operators(after)["ABS"] == 1
    assert len(formats.dumps(after)) < size + 4096
    assert_means_the_same(before, after)


def test_a_result_that_is_also_given_out_is_not_turned_away(command: Command) -> None:
    """The TRANSPOSE behind it is not the only one that wants it."""
    model = build(Form(transposed=True))
    graph = model.graphs[0]
    product = next(node for node in graph if node.op_type == "BATCH_MATMUL").outputs[0]
    graph.outputs.append(product)
    model.signatures[0].outputs["y"] = product
    before = formats.loads(formats.dumps(model))
    after = command(model)
    assert [value.name for value in after.graphs[0].outputs] == ["turned", "neg", "y"]
    assert operators(after)["FULLY_CONNECTED"] == 1
    assert_means_the_same(before, after)


@pytest.mark.parametrize("domain", ["circle", CUSTOM_DOMAIN])
def test_another_permutation_is_not_the_transpose_behind_it(command: Command, domain: str) -> None:
    model = build(Form(transposed=True))
    (transpose,) = (node for node in model.graphs[0] if node.op_type == "TRANSPOSE")
    if domain == CUSTOM_DOMAIN:
        transpose.domain = domain
    else:
        axes = transpose.inputs[1]
        axes.const_value = ir.Tensor(np.int32([2, 1, 0]), name="axes")
        model.graphs[0].outputs[0].shape = ir.Shape([5, 3, 2])
        model.graphs[0].outputs[1].shape = ir.Shape([5, 3, 2])
    before = formats.loads(formats.dumps(model))
    after = command(model)
    assert operators(after)["TRANSPOSE"] == 3
    if domain != CUSTOM_DOMAIN:
        assert_means_the_same(before, after)


@pytest.mark.parametrize("broken", BROKEN)
def test_a_near_miss_is_left_alone_and_explained(command: Command, broken: str) -> None:
    form = Form(ones=2) if broken == "batch axes added" else Form()
    before = build(replace(form, broken=broken))
    after = command(before, "--explain")
    assert operators(after) == operators(before)
    assert BROKEN[broken] in command.said


def test_a_left_operand_that_is_no_constant_is_no_candidate(command: Command) -> None:
    graph = Graph("main")
    a, x = graph.input("a", [2, 3]), graph.input("x", [3, 4])
    graph.output(
        graph.op("BATCH_MATMUL", [a, x], [2, 4]),
        graph.op("BATCH_MATMUL", [a, graph.constant("c", weights(3, 4))], [2, 4]),
    )
    after = command(graph.model(), "--explain")
    assert command.said == "fuse.bmm_lhs_const.py: main: fused 0 products\n"
    assert operators(after) == {"BATCH_MATMUL": 2}
