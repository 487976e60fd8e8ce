"""fuse.rms_norm: every spelling becomes RMS_NORM and means the same; nothing else does."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from o2o import formats
from o2o.contract import contract_of
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model
from o2o.operators import reference
from o2o.rewriting.builder import Builder
from o2o.weights.binding import bind
from tests.o2o import graphs
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import Graph, assert_means_the_same, exported_feeds, operators, weights
from tests.tolerances import assert_close

D = 6
EPSILON = 0.25  # large enough for a lost one to show


@dataclass(frozen=True)
class Form:
    """One spelling of the norm of x [*batch, D]."""

    square: str = "MUL"  # SQUARE, POW
    root: str = "RSQRT"  # SQRT and then: divide, multiply by 1 / root
    swapped: bool = False  # the other order of operands wherever a sum or a product has one
    batch: tuple[int, ...] = (2, 3)
    negative_axis: bool = False
    broken: str = ""


FORMS = [
    Form(square, root, swapped)
    for square, root, swapped in itertools.product(
        ("MUL", "SQUARE", "POW"), ("RSQRT", "divide", "inverse"), (False, True)
    )
]

BROKEN = {
    "another axis": "the mean goes over axes [1], not the last one",
    "two axes": "the mean goes over axes [1, 2], not the last one",
    "no axis kept": "the mean does not keep its axis",
    "larger result": "the result does not have the shape",
    "mean subtracted": "the inverse root does not multiply the tensor that was squared",
    "two tensors": "the mean's operand is a product of two tensors, not a square",
    "cube": "the mean's operand is a power other than the square",
    "root used elsewhere": "the root is used elsewhere too",
    "no epsilon": "the root should come from ADD",
    "epsilon an input": "no constant epsilon is added to the mean",
    "epsilon negative": "epsilon is -0.25",
    "activation of the sum": "ADD has a fused activation",
    "activation of the inverse": "DIV has a fused activation",
    "activation of the square": "MUL has a fused activation",
    "layer norm": "a mean is subtracted: it is LayerNorm",
}
NO_WEIGHT = [
    "weight an input",
    "weight of one number",
    "weight of every row",
    "no weight",
    "normalized is an output",
    "activation of the result",
]


def build(form: Form) -> Model:
    broken, graph = form.broken, Graph("main")
    shape = [*form.batch, D]
    x = graph.input("x", shape)

    def op(kind: str, operands: list[ir.Value], shape: list[int], name: str, where: str = "") -> ir.Value:
        if form.swapped and kind in ("ADD", "MUL"):
            operands = operands[::-1]
        active = {"fusedActivationFunction": 1} if where and broken == f"activation of the {where}" else {}
        return graph.op(kind, operands, shape, name=name, **active)

    source = x
    if broken in ("mean subtracted", "layer norm"):
        middle = graph.op("MEAN", [x, graph.constant("last", np.int32([-1]))], [*form.batch, 1], keepDims=1)
        source = op("SUB", [x, middle], shape, "centered")
        x = source if broken == "layer norm" else x
    if form.square == "POW":
        power = graph.constant("power", np.float32(3 if broken == "cube" else 2))
        squared = graph.op("POW", [source, power], shape)
    elif form.square == "SQUARE":
        squared = graph.op("SQUARE", [source], shape)
    else:
        other = graph.input("x2", shape) if broken == "two tensors" else source
        squared = op("MUL", [source, other], shape, "squared", "square")
    axes = {"another axis": [1], "two axes": [1, 2]}.get(
        broken, [-1 if form.negative_axis else len(shape) - 1]
    )
    kept = [1 if axis in axes or axis - len(shape) in axes else dim for axis, dim in enumerate(shape)]
    if broken == "no axis kept":
        kept = shape[:-1]
    over = graph.constant("axes", np.int32(axes))
    mean = graph.op("MEAN", [squared, over], kept, name="mean", keepDims=broken != "no axis kept")
    if broken != "no epsilon":
        number = np.float32(-EPSILON if broken == "epsilon negative" else EPSILON)
        if broken == "larger result":
            number, kept, shape = number.reshape([1] * (len(shape) + 1)), [1, *kept], [1, *shape]
        epsilon = (
            graph.input("epsilon", []) if broken == "epsilon an input" else graph.constant("epsilon", number)
        )
        mean = op("ADD", [mean, epsilon], kept, "shifted", "sum")
    if form.root == "RSQRT":
        root = graph.op("RSQRT", [mean], kept, name="root")
        normalized = op("MUL", [x, root], shape, "normalized")
    else:
        root = graph.op("SQRT", [mean], kept, name="root")
        if form.root == "divide":
            normalized = graph.op("DIV", [x, root], shape, name="normalized")
        else:
            one = graph.constant("one", np.float32(1))
            inverse = op("DIV", [one, root], kept, "inverse", "inverse")
            normalized = op("MUL", [x, inverse], shape, "normalized")
    result = normalized
    if broken != "no weight":
        size = {"weight of one number": (1,), "weight of every row": tuple(shape)}.get(broken, (D,))
        weight = (
            graph.input("w", size) if broken == "weight an input" else graph.constant("w", weights(*size))
        )
        result = op("MUL", [normalized, weight], shape, "scaled", "result")
    graph.output(graph.op("NEG", [result], shape, name="negated"))
    if broken != "no weight":
        graph.output(result)
    if broken == "root used elsewhere":
        graph.output(graph.op("NEG", [root], kept))
    if broken == "normalized is an output":
        graph.output(normalized)
    return graph.model()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.square} {form.root} {form.swapped}")
def test_every_spelling_is_fused_and_means_the_same(command: Command, form: Form) -> None:
    before = build(form)
    after = command(before)
    assert command.said == "fuse.rms_norm.py: main: fused 1 normalization\n"
    assert operators(after) == {"RMS_NORM": 1, "NEG": 1}
    (node,) = (node for node in after.graphs[0] if node.op_type == "RMS_NORM")
    assert node.attributes["epsilon"].value == EPSILON
    assert after.history[-1]["filter"] == "fuse.rms_norm.py"
    assert_means_the_same(before, after)


@settings(max_examples=25, deadline=None)
@given(batch=st.lists(st.integers(1, 3), max_size=3), form=st.sampled_from(FORMS), negative=st.booleans())
def test_any_rank(batch: list[int], form: Form, negative: bool) -> None:
    from o2o.filters.fuse_rms_norm import FuseRmsNorm

    form = Form(form.square, form.root, form.swapped, tuple(batch), negative)
    before, after = build(form), build(form)
    filter_ = FuseRmsNorm()
    filter_.apply(after, filter_.parser().parse_args([]))
    assert operators(after) == {"RMS_NORM": 1, "NEG": 1}
    assert_means_the_same(before, after)


SPELLING = {
    "cube": Form(square="POW"),
    "no axis kept": Form(batch=(D,)),  # its numbers go along the last axis
    "activation of the inverse": Form(root="inverse"),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_near_miss_is_left_alone_and_explained(command: Command, broken: str, swapped: bool) -> None:
    form = SPELLING.get(broken, Form())
    before = build(Form(form.square, form.root, swapped, form.batch, broken=broken))
    after = command(before, "--explain")
    assert operators(after) == operators(before)
    assert "left 1 candidate alone" in command.said
    assert BROKEN[broken] in command.said


@pytest.mark.parametrize("broken", NO_WEIGHT)
def test_a_norm_without_a_constant_weight_gets_ones(command: Command, broken: str) -> None:
    before = build(Form(broken=broken))
    after = command(before)
    assert command.said == "fuse.rms_norm.py: main: fused 1 normalization\n"
    (node,) = (node for node in after.graphs[0] if node.op_type == "RMS_NORM")
    weight = node.inputs[1]
    assert weight is not None
    assert (weight.const_value.numpy() == 1).all()  # type: ignore[union-attr]
    assert_means_the_same(before, after)


def two_products(same: bool) -> Model:
    """The normalized tensor times two weights, as ONE's exports have it for each projection."""
    model = build(Form(broken="no weight"))
    (graph,) = model.graphs
    (negated,) = (node for node in graph if node.op_type == "NEG")
    normalized = negated.inputs[0]
    assert normalized is not None
    op = Builder(graph, before=negated)
    first = op.constant(weights(D), "w1", np.float32)
    second = first if same else op.constant(weights(D, seed=5), "w2", np.float32)
    products = [op.node("MUL", [normalized, w], [2, 3, D]) for w in (first, second)]
    negated.replace_input_with(0, products[0])
    product = Builder(graph).node("ABS", [products[1]], [2, 3, D], name="second")
    graph.outputs.append(product)
    model.signatures.clear()
    return model


@pytest.mark.parametrize("same", [False, True])
def test_each_weight_of_one_normalized_tensor_is_a_norm(command: Command, same: bool) -> None:
    before, after = two_products(same), command(two_products(same))
    assert operators(after) == {"RMS_NORM": 1 if same else 2, "NEG": 1, "ABS": 1}
    assert_means_the_same(before, after)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_weight_that_is_computed_from_constants_is_folded(command: Command, swapped: bool) -> None:
    """Gemma multiplies by 1 + weight."""

    def gemma() -> Model:
        model = build(Form())
        (graph,) = model.graphs
        product = next(node for node in graph if node.outputs[0].name == "scaled")
        op = Builder(graph, before=graph[0])
        operands = [graph.initializers["w"], op.constant(1, "one", np.float32)]
        product.replace_input_with(1, op.node("ADD", operands[::-1] if swapped else operands, [D], name="g"))
        return model

    before, after = gemma(), command(gemma())
    assert operators(after) == {"RMS_NORM": 1, "NEG": 1}
    assert_means_the_same(before, after)


def test_a_weight_of_a_checkpoint_is_computed_when_it_is_bound(command: Command, tmp_path: Path) -> None:
    save_file({"w": weights(D)}, tmp_path / "model.safetensors")

    def gemma(bound: bool) -> Model:
        model = build(Form())
        (graph,) = model.graphs
        product = next(node for node in graph if node.outputs[0].name == "scaled")
        w = graph.initializers["w"]
        w.const_value = UnboundTensor("w", tmp_path / "model.safetensors", "w", ir.DataType.FLOAT, (D,))
        op = Builder(graph, before=graph[0])
        product.replace_input_with(1, op.node("ADD", [w, op.constant(1, "one", np.float32)], [D]))
        if bound:
            bind(model)
        return model

    after = command(gemma(bound=False))
    assert operators(after) == {"RMS_NORM": 1, "NEG": 1}
    bind(after)
    assert_means_the_same(gemma(bound=True), after)


def test_a_root_that_divides_another_tensor_is_none(command: Command) -> None:
    graph = Graph("main")
    x, other = graph.input("x", [2, D]), graph.input("other", [2, D])
    mean = graph.op(
        "MEAN", [graph.op("SQUARE", [x], [2, D]), graph.constant("axes", np.int32([1]))], [2, 1], keepDims=1
    )
    root = graph.op("SQRT", [graph.op("ADD", [mean, graph.constant("e", np.float32(1))], [2, 1])], [2, 1])
    y = graph.op("DIV", [other, root], [2, D])
    graph.output(graph.op("MUL", [y, graph.constant("w", weights(D))], [2, D]))
    command(graph.model(), "--explain")
    assert "the root does not divide the tensor that was squared" in command.said


def test_what_the_mean_is_used_for_besides_goes_on(command: Command) -> None:
    before = build(Form())
    (mean,) = (node.outputs[0] for node in before.graphs[0] if node.op_type == "MEAN")
    before.graphs[0].outputs.append(mean)
    after = command(before)
    assert operators(after) == {"MUL": 1, "MEAN": 1, "RMS_NORM": 1, "NEG": 1}
    assert_means_the_same(before, after)


def test_integers_and_what_is_quantized_are_no_candidates(command: Command) -> None:
    model = build(Form())
    for value in [*model.graphs[0].inputs, *(v for node in model.graphs[0] for v in node.outputs)]:
        value.type = ir.TensorType(ir.DataType.INT8)
        value.meta["fields"] = {"quantization": graphs.per_channel([0.5])}
    after = command(model, "--explain")
    assert "it computes INT8, not floats" in command.said
    assert "RMS_NORM" not in operators(after)


def test_a_graph_without_fixed_shapes_is_left_alone(command: Command) -> None:
    model = build(Form())
    model.graphs[0].inputs[0].meta["fields"] = {"shapeSignature": np.int32([-1, 3, D])}
    after = command(model)
    assert command.said == "fuse.rms_norm.py: main: left alone, as x has no fixed shape\n"
    assert operators(after) == operators(model)


def test_a_tflite_model_is_refused(command: Command) -> None:
    model = build(Form())
    model.format = "tflite"
    code, said = command.refusal(model)
    assert code == 1
    assert "needs circle" in said


@pytest.mark.parametrize("form", ["prefill", "concat", "static"])
@pytest.mark.parametrize("shape", ["demo", "grouped"])
def test_exported_graphs_have_two_norms_a_layer_and_a_last_one(
    command: Command, exported_model, shape: str, form: str
) -> None:
    """As transformers writes them: TICO knows only what torch calls rms_norm."""
    before, again = (formats.load(exported_model(shape, form)) for _ in range(2))
    layers = operators(before)["SOFTMAX"]
    after = command(before)
    assert operators(after)["RMS_NORM"] == 2 * layers + 1
    assert operators(after)["RSQRT"] == 0
    assert contract_of(after) == contract_of(again)
    given = exported_feeds(again, position=3)
    expected = reference.run_graph(again.graphs[0], given)
    values = reference.run_graph(after.graphs[0], given)
    assert_close(values["logits"], expected["logits"])
