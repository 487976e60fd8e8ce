"""Wrapped attention and norms compute the same: XNNPACK by name, LiteRT by the decomposition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import flatbuffers.flexbuffers
import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from hypothesis import given, settings

from o2o import formats
from o2o.filters.fuse_attention import FuseAttention
from o2o.lower.litert import lower_to_litert
from o2o.lower.litert.composites import ATTENTION, RMS_NORM, wrap_composites
from o2o.model import Model, attribute, shape_of
from o2o.rewriting.builder import Builder
from o2o.rewriting.outline import COMPOSITE, decompositions
from tests.o2o.graphs import BOOL, INT32, Graph, exported_feeds, feeds, operators, sign, weights
from tests.tolerances import assert_close

MASKS = ["none", "one_row", "rows", "constant", "below_each_other", "computed"]


@dataclass(frozen=True)
class Form:
    """The form of one attention: T queries of K * G heads, S keys of K heads.

    cached: keys and values come as [1, K, S, H], else [1, S, K, H]. by_head: so do queries and the result.
    repeated: keys are, else queries of a group are rows of one product. mask: of MASKS, or one that differs.
    """

    T: int = 1
    K: int = 2
    G: int = 2
    S: int = 7
    H: int = 4
    cached: bool = False
    by_head: bool = False
    repeated: bool = False
    flat: bool = False
    mask: str = "rows"
    cap: float | None = None
    scale: float = 0.37

    @property
    def N(self) -> int:
        return self.K * self.G


class Sdpa(Graph):
    """The graph of a form."""

    def __init__(self, form: Form) -> None:
        super().__init__("main")
        self.form = form
        T, N, K, S, H = form.T, form.N, form.K, form.S, form.H
        q = self.input("q", [1, N, T, H] if form.by_head else [1, T, N, H])
        k, v = (self.input(name, [1, K, S, H] if form.cached else [1, S, K, H]) for name in "kv")
        q = q if form.by_head else self.swapped(q)
        k, v = (k, v) if form.cached else (self.swapped(k), self.swapped(v))
        scores = self.product(q, k, S, adjointRhs=True)
        scores = self.number("MUL", scores, form.scale)
        if form.cap is not None:
            scores = self.number("DIV", scores, form.cap)
            scores = self.number("MUL", self.op("TANH", [scores], shape_of(scores)), form.cap)
        if (mask := self.mask()) is not None:
            scores = self.op("ADD", [scores, mask], shape_of(scores))
        y = self.product(self.op("SOFTMAX", [scores], shape_of(scores), beta=1.0), v, H, adjointRhs=False)
        y = self.reshaped(y, [1, N, T, H])
        y = y if form.by_head else self.swapped(y)
        self.output(self.op("ABS", [y], shape_of(y), name="y"))

    def product(self, x: ir.Value, y: ir.Value, columns: int, **options: bool) -> ir.Value:
        form = self.form
        heads, rows = (form.N, form.T) if form.repeated else (form.K, form.G * form.T)
        if form.repeated and form.G > 1:
            y = self.reshaped(y, [1, form.K, 1, *shape_of(y)[-2:]])
            many = [1, form.K, form.G, *shape_of(y)[-2:]]
            y = self.op("BROADCAST_TO", [y, self.constant("many", np.int32(many))], many, version=2)
        lead = [heads] if form.flat else [1, heads]
        y = self.reshaped(y, [*lead, *shape_of(y)[-2:]])
        x = self.reshaped(x, [*lead, rows, shape_of(x)[-1]])
        z = self.op("BATCH_MATMUL", [x, y], [*lead, rows, columns], adjointLhs=False, **options)
        return self.reshaped(z, [1, heads, rows, columns])

    def mask(self) -> ir.Value | None:
        form = self.form
        T, G, S = form.T, 1 if form.repeated else form.G, form.S
        hidden = np.where(np.tri(T, S, S - T) > 0, 0, -1e9).astype(np.float32)
        if form.mask == "one_row":
            return self.input("mask", [1, S])
        if form.mask == "rows":
            mask = self.input("mask", [1, 1, T, S])
            return mask if G == 1 or T == 1 else self.together([mask] * G)
        if form.mask == "constant":
            return self.constant("mask", np.tile(hidden, (G, 1)))
        if form.mask == "below_each_other":
            return self.together([self.input("mask", [1, 1, T, S])] * G)
        if form.mask == "each_member":
            return self.input("mask", [1, 1, G * T, S])
        if form.mask == "each_head":
            return self.input("mask", [1, form.N, T, S])
        if form.mask == "computed":
            start, shape = self.input("start", [1, 1], INT32), [G * T, S]
            queries = self.constant("queries", np.int32(np.tile(np.arange(T), G)[:, None]))
            rows = self.op("ADD", [start, queries], [G * T, 1])
            keys = self.constant("keys", np.arange(S, dtype=np.int32)[None])
            visible = self.op("LESS_EQUAL", [keys, rows], shape, BOOL)
            shown = [self.constant(name, np.float32(x)) for name, x in (("shown", 0), ("hidden", -1e9))]
            return self.op("SELECT_V2", [visible, *shown], shape, ir.DataType.FLOAT)
        return None

    def together(self, masks: list[ir.Value]) -> ir.Value:
        *lead, T, S = shape_of(masks[0])
        return self.op("CONCATENATION", masks, [*lead, T * len(masks), S], axis=2)

    def swapped(self, x: ir.Value) -> ir.Value:
        one, a, b, H = shape_of(x)
        return self.op("TRANSPOSE", [x, self.constant("swap", np.int32([0, 2, 1, 3]))], [one, b, a, H])

    def reshaped(self, x: ir.Value, shape: list[int]) -> ir.Value:
        if shape_of(x) == tuple(shape):
            return x
        return self.op("RESHAPE", [x, self.constant("to", np.int32(shape))], shape)

    def number(self, operator: str, x: ir.Value, number: float) -> ir.Value:
        return self.op(operator, [x, self.constant("number", np.float32(number))], shape_of(x))


def core(form: Form) -> Model:
    return Sdpa(form).model(format="tflite")


def norm() -> Model:
    """y = x * w / sqrt(mean(x^2) + eps), twice with the constants of the first."""
    graph = Graph("main")
    x = graph.input("x", [2, 3, 6])
    axis, epsilon = graph.constant("axis", np.int32([2])), graph.constant("epsilon", np.float32(1e-2))
    for name in ("first", "y"):
        mean = graph.op("MEAN", [graph.op("MUL", [x, x], [2, 3, 6]), axis], [2, 3, 1], keepDims=True)
        inverse = graph.op("RSQRT", [graph.op("ADD", [mean, epsilon], [2, 3, 1])], [2, 3, 1])
        x = graph.op("MUL", [x, inverse], [2, 3, 6])
        x = graph.op("MUL", [x, graph.constant(f"{name}_weight", weights(6))], [2, 3, 6], name=name)
    graph.output(x)
    return graph.model(format="tflite")


def run(model: Model, given: dict[str, np.ndarray], *, delegate: bool) -> dict[str, np.ndarray]:
    """By tensor name, on the interpreter with or without XNNPACK."""
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    resolver = OpResolverType.AUTO if delegate else plain
    engine = Interpreter(
        model_content=formats.dumps(model), num_threads=1, experimental_op_resolver_type=resolver
    )
    engine.allocate_tensors()
    places = {detail["name"]: detail["index"] for detail in engine.get_input_details()}
    for name, array in given.items():
        engine.set_tensor(places[name], array)
    engine.invoke()
    return {detail["name"]: engine.get_tensor(detail["index"]) for detail in engine.get_output_details()}


def run_compiled(model: Model, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By tensor name, as the runtime does."""
    engine = CompiledModel.from_buffer(formats.dumps(model))
    (signature,) = model.signatures
    sources, sinks = engine.create_input_buffers(0), engine.create_output_buffers(0)
    for buffer, value in zip(sources, signature.inputs.values(), strict=True):
        buffer.write(np.ascontiguousarray(given[value.name or ""]))
    engine.run_by_index(0, sources, sinks)
    found = {}
    for buffer, value in zip(sinks, signature.outputs.values(), strict=True):
        shape = shape_of(value)
        found[value.name or ""] = buffer.read(int(np.prod(shape)), np.float32).reshape(shape)
    return found


def assert_same_everywhere(before: Model, after: Model, given: dict[str, np.ndarray]) -> None:
    after = formats.loads(formats.dumps(after))
    expected = run(before, given, delegate=False)
    everywhere = [run(after, given, delegate=False), run(after, given, delegate=True)]
    for found in (*everywhere, run_compiled(after, given)):
        assert list(found) == list(expected)
        for name in expected:
            assert_close(found[name], expected[name])


def composites(model: Model) -> list[ir.Node]:
    return [node for graph in model.graphs for node in graph if node.op_type == COMPOSITE]


def attributes_of(node: ir.Node) -> dict[str, float]:
    found: dict[str, float] = flatbuffers.flexbuffers.Loads(bytes(attribute(node, "compositeAttributes")))
    return found


def given_for(form: Form, model: Model) -> dict[str, np.ndarray]:
    found = feeds(model)
    if "mask" in found:  # also as a model masks
        found["mask"] = np.where(found["mask"] > 0.8, -1e9, found["mask"]).astype(np.float32)
    if "start" in found:
        found["start"][:] = form.S - form.T
    return found


def assert_wraps(form: Form) -> ir.Node:
    before, after = core(form), core(form)
    assert wrap_composites(after) == {ATTENTION: 1}
    (node,) = composites(after)
    T, N, K, S, H = form.T, form.N, form.K, form.S, form.H
    q, k, v, mask = node.inputs
    assert [shape_of(x) for x in (k, v)] == [(1, S, K, H)] * 2  # type: ignore[arg-type]
    assert shape_of(q) == shape_of(node.outputs[0])  # type: ignore[arg-type]
    if T > 1 and form.mask not in ("none", "one_row"):  # else heads may as well be tokens
        assert shape_of(q) == shape_of(node.outputs[0]) == (1, T, N, H)  # type: ignore[arg-type]
        assert shape_of(mask) in ((1, 1, T, S), (1, 1, 1, S))  # type: ignore[arg-type]
    assert attribute(node, "name") == "odml.scaled_dot_product_attention"
    assert_same_everywhere(before, after, given_for(form, before))
    return node


@st.composite
def forms(draw: st.DrawFn) -> Form:
    flags = (draw(st.booleans()) for _ in range(4))
    mask = draw(st.sampled_from(MASKS))
    cap = draw(st.sampled_from([None, 1.5]))
    sizes = (draw(st.integers(1, 3)) for _ in range(3))
    return Form(*sizes, draw(st.integers(3, 9)), draw(st.sampled_from([2, 5])), *flags, mask=mask, cap=cap)


@settings(max_examples=40, deadline=None)
@given(form=forms())
def test_any_core(form: Form) -> None:
    """One token or several; one head, a head for all, groups; repeated or not; whatever the layout."""
    node = assert_wraps(form)
    (inner,) = (attribute(node, "decompositionSubgraphIndex"),)
    assert all(node.op_type != "BROADCAST_TO" for node in inner), "nothing is repeated"
    expected = {"scale": np.float32(form.scale)} | ({"logit_cap": form.cap} if form.cap else {})
    assert attributes_of(node) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("T", [1, 4])
@pytest.mark.parametrize(("K", "G"), [(1, 8), (4, 1), (2, 4)])
def test_delegates_take_it_by_its_name(K: int, G: int, T: int) -> None:
    """XNNPACK computes with the attributes: with others, the result differs."""
    form = Form(T=T, K=K, G=G, S=33, H=16)
    model = core(form)
    wrap_composites(model)
    (node,) = composites(model)
    given = given_for(form, model)
    other = float(np.float32(2.5))
    packed = flatbuffers.flexbuffers.Dumps({"scale": other})
    node.attributes["compositeAttributes"] = ir.AttrInt64s("compositeAttributes", list(packed))
    found = run(model, given, delegate=True)["y"]
    expected = run(core(Form(T=T, K=K, G=G, S=33, H=16, scale=other)), given, delegate=False)["y"]
    assert_close(found, expected)
    assert abs(run(model, given, delegate=False)["y"] - expected).max() > 0.1, "what is inside stays"


@pytest.mark.parametrize("first", [False, True])
def test_repeated_keys_may_be_scaled_before_the_product(first: bool) -> None:
    form = Form(T=3, repeated=True)
    before, after = core(form), core(form)
    for model in (before, after):
        (graph,) = model.graphs
        product = next(node for node in graph if node.op_type == "BATCH_MATMUL")
        keys = product.inputs[1]
        assert keys is not None
        op = Builder(graph, before=product)
        operands = [op.constant(0.5, "half", np.float32), keys]
        halved = op.node("MUL", operands if first else operands[::-1], shape_of(keys))
        product.replace_input_with(1, halved)
    assert wrap_composites(after) == {ATTENTION: 1}
    (node,) = composites(after)
    assert shape_of(node.inputs[1]) == (1, form.S, form.K, form.H)  # type: ignore[arg-type]
    assert "BROADCAST_TO" not in operators(after), "nothing is repeated"
    assert_same_everywhere(before, after, given_for(form, before))


def test_layouts_of_the_composite_need_no_transposing() -> None:
    model = core(Form(T=3))
    wrap_composites(model)
    main, inner = model.graphs
    assert [node.op_type for node in main if node.op_type not in ("SLICE", "CONCATENATION")] == [
        COMPOSITE,
        "ABS",
    ]
    assert operators(model)["TRANSPOSE"] == 4
    assert inner in decompositions(model)


def test_decode_from_caches_by_token_transposes_nothing_outside() -> None:
    model = core(Form(T=1, by_head=True))
    wrap_composites(model)
    assert {node.op_type for node in model.graphs[0]} == {"RESHAPE", COMPOSITE, "ABS"}


def test_one_mask_serves_all_layers() -> None:
    """Rows below each other are cut to those of one head once."""
    form = Form(T=3, G=3, mask="computed")
    graph = Sdpa(form)
    first = graph.ir.outputs.pop()
    again = graph.product(first_input(graph, "q"), first_input(graph, "k"), form.S, adjointRhs=True)
    masked = graph.op("ADD", [again, masks_of(graph)], shape_of(again))
    y = graph.op("SOFTMAX", [masked], shape_of(masked), beta=1.0)
    y = graph.product(y, first_input(graph, "v"), form.H, adjointRhs=False)
    graph.output(first, graph.reshaped(y, [1, form.N, form.T, form.H]))
    model = graph.model(format="tflite")
    assert wrap_composites(model) == {ATTENTION: 2}
    assert [node.op_type for node in model.graphs[0]].count("SLICE") == 1
    one, two = composites(model)
    assert one.inputs[3] is two.inputs[3]


def first_input(graph: Sdpa, name: str) -> ir.Value:
    """q, k or v with its heads first."""
    (value,) = (value for value in graph.ir.inputs if value.name == name)
    return next(use.node.outputs[0] for use in value.uses() if use.node.op_type == "TRANSPOSE")


def masks_of(graph: Sdpa) -> ir.Value:
    return next(node.outputs[0] for node in graph.ir if node.op_type == "SELECT_V2")


def test_norms() -> None:
    before, after = norm(), norm()
    assert wrap_composites(after) == {RMS_NORM: 2}
    for node, name in zip(composites(after), ("first", "y"), strict=True):
        assert attribute(node, "name") == "odml.rms_norm"
        assert attributes_of(node) == {"epsilon": np.float32(1e-2)}
        assert [shape_of(x) for x in node.inputs] == [(2, 3, 6), (6,)]  # type: ignore[arg-type]
        assert node.inputs[1].name == f"{name}_weight"  # type: ignore[union-attr]
    assert len(after.graphs) == 3
    assert_same_everywhere(before, after, feeds(before))


def test_a_norm_of_circle() -> None:
    graph = Graph("main")
    x, w = graph.input("x", [2, 6]), graph.constant("w", weights(6))
    graph.output(graph.op("RMS_NORM", [x, w], [2, 6], name="y", epsilon=1e-3))
    model = graph.model()
    plain = lower_to_litert(formats.loads(formats.dumps(model)))
    assert wrap_composites(model) == {RMS_NORM: 1}
    assert [value.name for value in model.graphs[0].outputs] == ["y"]
    assert formats.loads(formats.dumps(model)).format == "circle"
    assert_same_everywhere(plain, lower_to_litert(model), feeds(plain))


def test_wrapping_twice_is_wrapping_once() -> None:
    model = core(Form())
    wrap_composites(model)
    data = formats.dumps(model)
    assert wrap_composites(model).total() == 0
    assert formats.dumps(model) == data


def reasons(model: Model) -> list[str]:
    data, found = formats.dumps(model), []
    assert not wrap_composites(model, lambda graph, node, failure: found.append(failure.reason))
    assert formats.dumps(model) == data, "what is left alone is not changed"
    return found


def test_heads_with_masks_of_their_own_are_left_alone() -> None:
    (reason,) = reasons(core(Form(T=3, repeated=True, mask="each_head")))
    assert reason == "the heads are masked differently"


def test_members_of_a_group_with_masks_of_their_own_are_tokens() -> None:
    """3 tokens of 2 x 2 heads are 6 tokens of 2 heads as well, so shapes do not show the difference."""
    form = Form(T=3, mask="each_member")
    before, after = core(form), core(form)
    assert wrap_composites(after) == {ATTENTION: 1}
    (node,) = composites(after)
    assert shape_of(node.outputs[0]) == (1, 6, 2, 4)
    assert_same_everywhere(before, after, given_for(form, before))


def test_a_scale_of_scores_and_mask_is_the_scale_of_both() -> None:
    def build() -> Model:
        graph = Sdpa(form)
        (scores,) = (node for node in graph.ir if node.op_type == "ADD")
        softmax = next(node for node in graph.ir if node.op_type == "SOFTMAX")
        half = graph.number("MUL", scores.outputs[0], 0.5)
        softmax.replace_input_with(0, half)
        graph.ir.insert_before(softmax, half.producer())  # type: ignore[arg-type]
        return graph.model(format="tflite")

    form = Form(T=3)
    before, after = build(), build()
    assert wrap_composites(after) == {ATTENTION: 1}
    (node,) = composites(after)
    assert attributes_of(node) == pytest.approx({"scale": form.scale / 2}, rel=1e-6)
    assert_same_everywhere(before, after, given_for(form, before))


def test_a_mask_that_is_capped_is_left_alone() -> None:
    graph = Sdpa(Form())
    (scores,) = (node for node in graph.ir if node.op_type == "ADD")
    softmax = next(node for node in graph.ir if node.op_type == "SOFTMAX")
    capped = graph.op("TANH", [scores.outputs[0]], shape_of(scores.outputs[0]))
    softmax.replace_input_with(0, capped)
    graph.ir.insert_before(softmax, capped.producer())  # type: ignore[arg-type]
    assert reasons(graph.model(format="tflite")) == ["the mask is capped too"]


def test_a_softmax_of_something_else_is_left_alone() -> None:
    graph = Graph("main")
    x = graph.input("x", [2, 5])
    graph.output(graph.op("SOFTMAX", [x], [2, 5], name="y", beta=1.0))
    assert reasons(graph.model(format="tflite")) == ["the softmax is not over products of queries and keys"]


def test_a_norm_whose_mean_is_given_out_is_left_alone() -> None:
    model = norm()
    graph = model.graphs[0]
    mean = next(node.outputs[0] for node in graph if node.op_type == "MEAN")
    graph.outputs.append(mean)
    found: list[str] = []
    assert wrap_composites(model, lambda graph, node, failure: found.append(failure.reason)) == {RMS_NORM: 1}
    assert found == ["it is used outside the region too"]


def test_halves_are_left_alone() -> None:
    model = norm()
    model.graphs[0].inputs[0].dtype = ir.DataType.FLOAT16
    found: list[str] = []
    wrap_composites(model, lambda graph, node, failure: found.append(failure.reason))
    assert found[0] == "it is not float32 of a fixed shape"


def test_every_signature() -> None:
    """Two graphs of one model; the second's decompositions come behind, too."""
    one, two = Sdpa(Form(T=3)), Sdpa(Form(T=1))
    two.ir.name = "decode"
    model = one.model(two, format="tflite")
    sign(model, two.ir)
    assert wrap_composites(model) == {ATTENTION: 2}
    assert [graph.name for graph in model.graphs] == [
        "main",
        "decode",
        "odml.scaled_dot_product_attention.impl_0",
        "odml.scaled_dot_product_attention.impl_1",
    ]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("form", ["static", "prefill_4"])
def test_exported(exported_model: Callable[[str, str], Path], form: str, fused: bool) -> None:
    """As exported, and by way of ATTENTION: 3 layers, 7 norms."""
    model = formats.load(exported_model("grouped", form))
    if fused:
        FuseAttention().apply(model, FuseAttention().parser().parse_args([]))
    before = lower_to_litert(model)
    after = formats.loads(formats.dumps(before))
    assert wrap_composites(after) == {ATTENTION: 3, RMS_NORM: 7}
    found = operators(after)
    assert found["SOFTMAX"] == 3
    assert found["BROADCAST_TO"] == 0
    for position in (0, 9):
        given = exported_feeds(before, position)
        expected = run(before, given, delegate=True)
        for delegate in (True, False):
            results = run(after, given, delegate=delegate)
            for name in expected:
                assert_close(results[name], expected[name])
