"""fuse.bmm_lhs_const: a constant operand becomes FULLY_CONNECTED's weights, and nothing changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o import formats
from o2o.contract import Role
from o2o.filters.fuse_bmm_lhs_const import FuseBmmLhsConst
from o2o.filters.quantize_weights import QuantizeWeights
from o2o.formats.tensors import storage_key, stored_bytes
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import CUSTOM_DOMAIN, Format, Model
from o2o.quantization.recipes import NONE, RECIPES
from o2o.weights.binding import bind
from tests.o2o import graphs
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import Graph, assert_means_the_same, operators, run, weights
from tests.o2o.weights.test_binding import NUMBERS, checkpoint


@dataclass(frozen=True)
class Form:
    """A [M, K] times x [*batch, K, N], with leading axes of size 1 on A, transposed operands and results.

    If `constant` is "right", it is x [*batch, M, K] times A [K, N].
    """

    M: int = 3
    K: int = 4
    N: int = 5
    batch: tuple[int, ...] = (2,)
    ones: int = 1  # batch axes of A
    adjoint_lhs: bool = False
    adjoint_rhs: bool = False
    transposed: bool = False  # a TRANSPOSE of the result's last two axes follows
    constant: str = "left"
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
    is_left = form.constant == "left"
    matrix, other = ([M, K], [K, N]) if is_left else ([K, N], [M, K])
    swaps, swaps_other = (form.adjoint_lhs, form.adjoint_rhs)[:: 1 if is_left else -1]
    numbers = weights(*(batch if broken == "by batch" else [1] * form.ones), *matrix)
    if swaps:
        numbers = numbers.swapaxes(-1, -2).copy()
    dtype = ir.DataType.FLOAT
    if broken == "integers":
        numbers, dtype = numbers.astype(np.int32), ir.DataType.INT32
    if broken == "quantized":
        numbers = numbers.astype(np.int8)
    if broken == "of halves":
        numbers = numbers.astype(np.float16)
    constant = graph.constant("A", numbers)
    if broken == "quantized":
        constant.meta["fields"] = {"quantization": graphs.per_channel([0.5])}
    x = graph.input("x", [*batch, *(other[::-1] if swaps_other else other)], dtype)
    shape = [*[1] * max(form.ones - len(batch), 0), *batch, M, N]
    y = graph.op(
        "BATCH_MATMUL",
        [constant, x] if is_left else [x, constant],
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
        constant=st.sampled_from(["left", "right"]),
        format=st.sampled_from(["circle", "tflite"]),
    ),
    ones=st.integers(0, 2),
)
def test_every_form_is_fused_and_means_the_same(form: Form, ones: int) -> None:
    before, after = fused(replace(form, ones=min(ones, len(form.batch))))
    assert operators(after)["BATCH_MATMUL"] == 0
    assert operators(after)["FULLY_CONNECTED"] == 1
    if form.constant == "right":  # only an operand that was transposed before is transposed again
        assert operators(after)["TRANSPOSE"] <= form.adjoint_lhs + form.transposed
    elif 1 in (form.M, form.N):  # then the result needs no moving, unless it came with a TRANSPOSE
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


@pytest.mark.parametrize("constant", ["left", "right"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_near_miss_is_left_alone_and_explained(command: Command, broken: str, constant: str) -> None:
    form = Form(ones=2) if broken == "batch axes added" else Form()
    before = build(replace(form, broken=broken, constant=constant))
    after = command(before, "--explain")
    assert operators(after) == operators(before)
    assert BROKEN[broken] in command.said


def behind(graph: Graph, value: ir.Value, *steps: tuple[str, list[int], list[int]]) -> ir.Value:
    """Apply operators (type, second operand, shape of the result)."""
    for op_type, numbers, shape in steps:
        value = graph.op(op_type, [value, graph.constant("numbers", np.int32(numbers))], shape)
    return value


# The constant's shape, and the operators between it and the product with x [2, 5, 6] or [6, 5].
MOVED: dict[str, tuple[list[int], list[tuple[str, list[int], list[int]]]]] = {
    "einsum td,df": ([6, 8], [("RESHAPE", [1, 6, 8], [1, 6, 8])]),
    "einsum td,fd": (
        [8, 6],
        [
            ("RESHAPE", [8, 6, 1, 1], [8, 6, 1, 1]),
            ("TRANSPOSE", [2, 3, 1, 0], [1, 1, 6, 8]),
            ("RESHAPE", [1, 6, 8], [1, 6, 8]),
        ],
    ),
    "einsum td,dhk": ([6, 2, 4], [("RESHAPE", [1, 6, 8], [1, 6, 8])]),
    "einsum td,hkd": (
        [2, 4, 6],
        [("TRANSPOSE", [2, 0, 1], [6, 2, 4]), ("RESHAPE", [1, 6, 8], [1, 6, 8])],
    ),
    "broadcast": ([6, 8], [("BROADCAST_TO", [2, 6, 8], [2, 6, 8])]),
    "transposed twice": (
        [6, 8],
        [("TRANSPOSE", [1, 0], [8, 6]), ("TRANSPOSE", [1, 0], [6, 8]), ("EXPAND_DIMS", [0], [1, 6, 8])],
    ),
}
OTHERWISE = {
    "heads in another order": (
        [6, 2, 4],
        [("TRANSPOSE", [0, 2, 1], [6, 4, 2]), ("RESHAPE", [1, 6, 8], [1, 6, 8])],
    ),
    "the axes mixed": (
        [8, 6],
        [("RESHAPE", [6, 8], [6, 8]), ("TRANSPOSE", [1, 0], [8, 6]), ("RESHAPE", [6, 8], [6, 8])],
    ),
    "batches that differ": ([2, 6, 8], [("TRANSPOSE", [0, 1, 2], [2, 6, 8])]),
}


def moved(name: str, is_left: bool) -> Model:
    """x times a constant behind operators that move elements; or the constant times x, both adjoint."""
    shape, steps = (MOVED | OTHERWISE)[name]
    graph = Graph("main")
    x = graph.input("x", [2, 5, 6])
    w = behind(graph, graph.constant("A", weights(*shape)), *steps)
    if is_left:
        y = graph.op("BATCH_MATMUL", [w, x], [2, 8, 5], adjointLhs=True, adjointRhs=True)
    else:
        y = graph.op("BATCH_MATMUL", [x, w], [2, 5, 8])
    graph.output(y)
    return graph.model()


@pytest.mark.parametrize("is_left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", MOVED)
def test_constants_behind_operators_that_move_elements(command: Command, name: str, is_left: bool) -> None:
    after = command(moved(name, is_left))
    assert set(operators(after)) <= {"FULLY_CONNECTED", "TRANSPOSE"}
    assert operators(after)["FULLY_CONNECTED"] == 1
    assert operators(after)["TRANSPOSE"] == is_left
    assert_means_the_same(moved(name, is_left), after)


@pytest.mark.parametrize("name", OTHERWISE)
def test_constants_in_another_order_are_left_alone(command: Command, name: str) -> None:
    after = command(moved(name, is_left=False), "--explain")
    assert operators(after) == operators(moved(name, is_left=False))
    assert "the constant differs from batch to batch, or its elements are moved" in command.said


def test_without_a_constant_operand_it_is_no_candidate(command: Command) -> None:
    graph = Graph("main")
    a, x = graph.input("a", [2, 3]), graph.input("x", [3, 4])
    graph.output(graph.op("BATCH_MATMUL", [a, x], [2, 4]))
    after = command(graph.model(), "--explain")
    assert command.said == "fuse.bmm_lhs_const.py: main: fused 0 products\n"
    assert operators(after) == {"BATCH_MATMUL": 1}


def test_weights_that_graphs_share_are_transposed_once(command: Command) -> None:
    model = build(Form(M=2, K=64, N=96, constant="right"))
    other = build(Form(M=5, K=64, N=96, constant="right"))
    other.graphs[0].initializers["A"].const_value = model.graphs[0].initializers["A"].const_value
    model.graphs += other.graphs
    model.signatures += [replace(other.signatures[0], name="other")]
    size = len(formats.dumps(model))
    after = command(model)
    assert operators(after)["FULLY_CONNECTED"] == 2
    assert len(formats.dumps(after)) < size + 4096
    first, second = (graph.initializers["A"].const_value for graph in after.graphs)
    assert storage_key(first) == storage_key(second)  # type: ignore[arg-type]
    assert_means_the_same(model, after)


def _with_reference(path: Path, stored_shape: tuple[int, ...]) -> Model:
    """x [2, 5, 64] times A [64, 48], which is a tensor of a checkpoint."""
    model = build(Form(M=5, K=64, N=48, constant="right", ones=0))
    reference = UnboundTensor("A", path, "w", ir.DataType.FLOAT, stored_shape, (64, 48))
    model.graphs[0].initializers["A"].const_value = reference
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_reference_to_a_checkpoint_stays_one(command: Command, tmp_path: Path, dtype: torch.dtype) -> None:
    path = checkpoint(tmp_path, dtype)
    before = _with_reference(path, (64, 48))
    after = command(before)
    reference = after.graphs[0].initializers["A"].const_value
    assert isinstance(reference, UnboundTensor)
    assert reference.transposed
    assert tuple(reference.shape.numpy()) == (48, 64)
    bind(before, partial=True)
    bind(after, partial=True)
    written = formats.loads(formats.dumps(after))
    np.testing.assert_array_equal(
        written.graphs[0].initializers["A"].const_value.numpy(),  # type: ignore[union-attr]
        NUMBERS.to(dtype).float().numpy().T,
    )
    assert_means_the_same(before, written)


def test_a_reference_to_no_matrix_is_left_alone(command: Command, tmp_path: Path) -> None:
    """Its numbers as a matrix in another order are not known before they are bound."""
    after = command(_with_reference(tmp_path / "model.safetensors", (64, 6, 8)), "--explain")
    assert operators(after)["BATCH_MATMUL"] == 1
    assert "w of the checkpoint is [64, 6, 8]: bind weights first" in command.said


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != NONE.name])
def test_every_recipe_quantizes_the_weights(recipe: str, tmp_path: Path) -> None:
    """Those in the model as those of a checkpoint."""
    inside, referred = (_with_reference(checkpoint(tmp_path), (64, 48)) for _ in range(2))
    bind(inside, partial=True)
    exact = formats.loads(formats.dumps(inside))
    outputs = []
    for model in (inside, referred):
        for filter_, *arguments in ((FuseBmmLhsConst(), []), (QuantizeWeights(), ["--recipe", recipe])):
            filter_.apply(model, filter_.parser().parse_args(*arguments))
        outputs.append(formats.dumps(model))
    assert outputs[0] == outputs[1]
    quantized = formats.loads(outputs[0])
    assert stored_bytes(quantized) < 0.6 * stored_bytes(exact)
    x = {"x": weights(2, 5, 64, seed=5)}
    expected, actual = run(exact, x)["y"], run(quantized, x)["y"]
    assert np.sqrt(((actual - expected) ** 2).mean()) < (0.12 if "int4" in recipe else 0.02) * expected.std()
