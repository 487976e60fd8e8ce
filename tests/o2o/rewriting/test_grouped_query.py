"""Repeated heads become rows of one product, and what LiteRT computes stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.lower.litert import lower_to_litert
from o2o.model import Model, shape_of
from o2o.operators import reference
from o2o.rewriting.grouped_query import fold_grouped_queries, match_repeated_heads
from o2o.rewriting.matchers import MatchFailure
from tests.checkpoints import GROUPED, write_checkpoint
from tests.o2o import graphs
from tests.o2o.graphs import Graph, exported_feeds, feeds, operators
from tests.tolerances import assert_close

H, S = 5, 7


@dataclass(frozen=True)
class Form:
    """One form of attention: q [1, K * G, T, H], k and v [1, K, S, H].

    swapped: k is transposed behind the repetition, else by BATCH_MATMUL. flat: products of three axes.
    scaled: the keys are scaled behind the repetition. heads_inside: member g of the group of head k is head
    g * K + k, which no reshape makes rows of one matrix.
    """

    K: int = 2
    G: int = 3
    T: int = 4
    swapped: bool = True
    flat: bool = False
    scaled: bool = False
    heads_inside: bool = False
    keys_given_out: bool = False


def attention(form: Form) -> Model:
    K, G, T = form.K, form.G, form.T
    N = K * G
    graph = Graph("main")
    q, k, v = (graph.input(name, [1, n, t, H]) for name, n, t in (("q", N, T), ("k", K, S), ("v", K, S)))
    mask = graph.input("mask", [1, 1, T, S])

    def shape(name: str, x: ir.Value, to: list[int]) -> ir.Value:
        return graph.op("RESHAPE", [x, graph.constant(f"{name}_shape", np.int32(to))], to, name=name)

    def repeat(name: str, x: ir.Value) -> ir.Value:
        one, many = (
            ([1, 1, K, S, H], [1, G, K, S, H]) if form.heads_inside else ([1, K, 1, S, H], [1, K, G, S, H])
        )
        x = shape(f"{name}_one", x, one)
        x = graph.op(
            "BROADCAST_TO", [x, graph.constant(f"{name}_many", np.int32(many))], many, name=f"{name}s"
        )
        return shape(f"{name}_heads", x, [1, N, S, H])

    def product(name: str, a: ir.Value, b: ir.Value, width: int, **options: bool) -> ir.Value:
        if form.flat:
            a, b = (shape(f"{y.name}_flat", y, list(shape_of(y)[1:])) for y in (a, b))
        lead = [N] if form.flat else [1, N]
        y = graph.op("BATCH_MATMUL", [a, b], [*lead, T, width], name=name, adjointLhs=False, **options)
        return shape(f"{name}_unflat", y, [1, N, T, width]) if form.flat else y

    keys, values = repeat("k", k), repeat("v", v)
    given = [keys] if form.keys_given_out else []
    if form.swapped:
        order = graph.constant("order", np.int32([0, 1, 3, 2]))
        keys = graph.op("TRANSPOSE", [keys, order], [1, N, H, S], name="k_swapped")
    if form.scaled:
        half = graph.constant("half", np.float32(0.5))
        keys = graph.op("MUL", [keys, half], shape_of(keys), name="k_scaled")
    scores = product("scores", q, keys, S, adjointRhs=not form.swapped)
    third = graph.constant("third", np.float32(1 / 3))
    scores = graph.op("MUL", [scores, third], [1, N, T, S], name="scaled")
    scores = graph.op("ADD", [scores, mask], [1, N, T, S], name="masked")
    weights = graph.op("SOFTMAX", [scores], [1, N, T, S], name="weights", beta=1.0)
    graph.output(product("y", weights, values, H, adjointRhs=False), *given)
    return graph.model()


FORMS = [
    Form(),
    Form(T=1),
    Form(K=1, G=4),
    Form(swapped=False),
    Form(flat=True),
    Form(flat=True, T=1, swapped=False),
    Form(scaled=True),
    Form(K=3, G=3, T=3, scaled=True, flat=True),
]


@pytest.mark.parametrize("form", FORMS)
def test_heads_are_not_repeated(form: Form) -> None:
    before, after = attention(form), attention(form)
    assert fold_grouped_queries(after, after.graphs[0]) == 2
    collected = operators(after)
    assert collected["BROADCAST_TO"] == 0
    assert collected["TRANSPOSE"] == 0
    given = feeds(before)
    expected = reference.run_graph(before.graphs[0], given)
    for results in (
        graphs.run(before, given),
        reference.run_graph(after.graphs[0], given),
        graphs.run(after, given),
    ):
        assert list(results) == list(expected)
        for name in expected:
            assert_close(results[name], expected[name])


def test_nothing_between_the_products_changes() -> None:
    model = attention(Form())
    fold_grouped_queries(model, model.graphs[0])
    shapes = {node.op_type: shape_of(node.outputs[0]) for node in model.graphs[0]}
    assert shapes["MUL"] == shapes["ADD"] == shapes["SOFTMAX"] == (1, 6, 4, S)
    assert [shape_of(n.inputs[1]) for n in model.graphs[0] if n.op_type == "BATCH_MATMUL"] == [
        (1, 2, S, H)
    ] * 2  # type: ignore[arg-type]


def reasons(model: Model) -> list[str]:
    """The reason why each product that fails is left alone."""
    collected = []
    for node in model.graphs[0]:
        if node.op_type == "BATCH_MATMUL":
            try:
                match_repeated_heads(node)
            except MatchFailure as failure:
                collected.append(failure.reason)
    return collected


def test_heads_of_another_order_are_left_alone() -> None:
    model = attention(Form(heads_inside=True))
    (first, second) = reasons(model)
    assert first == second == "the repeated axis is not the axis of a group's heads"
    assert fold_grouped_queries(model, model.graphs[0]) == 0
    assert operators(model)["BROADCAST_TO"] == 2


def test_keys_that_are_given_out_repeated_are_left_alone() -> None:
    model = attention(Form(keys_given_out=True))
    assert reasons(model) == ["the repeated tensor is used elsewhere too"]
    assert fold_grouped_queries(model, model.graphs[0]) == 1, "the values"
    assert operators(model)["BROADCAST_TO"] == 1


def test_repeated_tokens_are_left_alone() -> None:
    """One key for all tokens is no group."""
    graph = Graph("main")
    q, k = graph.input("q", [1, 2, 3, H]), graph.input("k", [1, 2, 1, H])
    many = graph.constant("many", np.int32([1, 2, S, H]))
    keys = graph.op("BROADCAST_TO", [k, many], [1, 2, S, H], name="keys")
    graph.output(graph.op("BATCH_MATMUL", [q, keys], [1, 2, 3, S], name="y", adjointRhs=True))
    model = graph.model()
    assert reasons(model) == ["the repeated axis is not the axis of a group's heads"]
    assert fold_grouped_queries(model, model.graphs[0]) == 0


def test_two_axes_are_left_alone() -> None:
    graph = Graph("main")
    q, k = graph.input("q", [2, 6, 3, H]), graph.input("k", [1, 1, S, H])
    many = graph.constant("many", np.int32([2, 6, S, H]))
    keys = graph.op("BROADCAST_TO", [k, many], [2, 6, S, H], name="keys")
    graph.output(graph.op("BATCH_MATMUL", [q, keys], [2, 6, 3, S], name="y", adjointRhs=True))
    assert reasons(graph.model()) == ["it repeats more or fewer axes than one"]


def test_quantized_keys_are_left_alone() -> None:
    """Keys of int8 with queries of float: the scale of a key is none of a query."""
    model = attention(Form(scaled=True))
    for value in (v for node in model.graphs[0] for v in (*node.inputs, *node.outputs)):
        if value is not None and (value.name or "").startswith("k"):
            value.type = ir.TensorType(ir.DataType.INT8)
    assert reasons(model) == ["it does not multiply floats of a fixed shape"]


def test_several_sequences() -> None:
    """Each has heads of its own, which are heads like others."""

    def build() -> Model:
        graph = Graph("main")
        q, k = graph.input("q", [2, 6, 3, H]), graph.input("k", [2, 2, 1, S, H])
        many = graph.constant("many", np.int32([2, 2, 3, S, H]))
        keys = graph.op("BROADCAST_TO", [k, many], [2, 2, 3, S, H], name="keys")
        heads = graph.op("RESHAPE", [keys, graph.constant("to", np.int32([2, 6, S, H]))], [2, 6, S, H])
        graph.output(graph.op("BATCH_MATMUL", [q, heads], [2, 6, 3, S], name="y", adjointRhs=True))
        return graph.model()

    before, after = build(), build()
    assert fold_grouped_queries(after, after.graphs[0]) == 1
    given = feeds(before)
    expected, collected = graphs.run(before, given)["y"], graphs.run(after, given)["y"]
    assert_close(collected, expected)


@pytest.mark.parametrize("form", ["static", "concat", "prefill_4"])
def test_exported(exported_model: Callable[[str, str], Path], form: str) -> None:
    assert_lowers(formats.load(exported_model("grouped", form)))


@pytest.mark.parametrize(
    ("model_type", "attention"),
    [("qwen2", "eager"), ("qwen3", "eager"), ("qwen3", "sdpa"), ("gemma", "eager"), ("gemma2", "eager")],
)
def test_architectures(tmp_path: Path, model_type: str, attention: str) -> None:
    """Biases, normalized queries and keys, capped scores: none of them matters here."""
    from export import build_graph

    config = {**GROUPED, "num_hidden_layers": 1}
    if model_type == "qwen2":  # whose head dimension is D / N
        config["hidden_size"] = config.pop("head_dim") * config["num_attention_heads"]
    write_checkpoint(tmp_path, model_type=model_type, **config)
    assert_lowers(build_graph.decode(tmp_path, 16, "static", attn_implementation=attention))


def assert_lowers(model: Model) -> None:
    data = formats.dumps(model)
    assert operators(model)["BROADCAST_TO"] > 0
    lowered = lower_to_litert(formats.loads(data))
    assert operators(lowered)["BROADCAST_TO"] == 0
    for position in (0, 9):
        given = exported_feeds(model, position)
        expected, collected = graphs.run(model, given), graphs.run(lowered, given)
        for name in expected:
            assert_close(collected[name], expected[name])
