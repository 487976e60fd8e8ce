"""`o2o.attention` on LiteRT computes what the reference computes: whatever it adds, at once and in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o import formats
from o2o.lower.litert import lower_to_litert
from o2o.lower.litert.attention import FlashBlocks
from o2o.model import Model
from o2o.operators.core_attention import CoreAttention, FlashBlockSizes
from o2o.operators.reference import run_graph
from tests.o2o import graphs
from tests.o2o.graphs import INT32, Graph
from tests.tolerances import assert_close

H = 4


def core_model(K: int, G: int, T: int, S: int, shapes: dict[str, tuple[int, ...]], **options: Any) -> Model:
    """One `o2o.attention`. `shapes` are those of its optional operands; slopes and sinks are constants."""
    graph, N = Graph("main"), K * G
    generator = np.random.default_rng(N)
    optional = {
        name: graph.input(name, list(shape))
        if name == "mask"
        else graph.constant(name, generator.uniform(0.1, 2, shape).astype(np.float32))
        for name, shape in shapes.items()
    }
    q, k, v = graph.input("q", [1, N, T, H]), graph.input("k", [1, K, S, H]), graph.input("v", [1, K, S, H])
    position = graph.input("position", [1], INT32)
    node = CoreAttention(q, k, v, position, **{"scale": 0.7} | options, **optional).build("attended")
    graph.ir.append(node)
    graph.output(graph.op("NEG", [node.outputs[0]], [1, T, N, H], name="y"))
    return graph.model()


def assert_lowers(build: Any, flash: FlashBlocks = None) -> None:
    before, after = build(), formats.loads(formats.dumps(lower_to_litert(build(), flash)))
    (graph,) = before.graphs
    (_, _, T, _), (_, _, S, _) = (graph.inputs[-4].shape.numpy(), graph.inputs[-3].shape.numpy())
    for position in sorted({0, (S - T) // 2, S - T}):
        feeds = graphs.feeds(before) | {"position": np.int32([position])}
        assert_close(graphs.run(after, feeds)["y"], run_graph(graph, feeds)["y"], err_msg=f"at {position}")


@st.composite
def cores(draw: st.DrawFn) -> Any:
    K, G, T = (draw(st.integers(1, 3)) for _ in range(3))
    S = T + draw(st.integers(0, 6))
    N = K * G
    extras = draw(st.sets(st.sampled_from(["slopes", "sinks"])))
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(extras, (N,))
    forms = [None, None, None, (1, 1, T, S), (1, N, T, S), (1, N, 1, S), (1, N, 1, 1), (T, S), (S,)]
    if (mask := draw(st.sampled_from(forms))) is not None:
        shapes = {"mask": mask, **shapes}
    softcap, window = draw(st.sampled_from([0.0, 0.0, 1.5])), draw(st.sampled_from([0, 0, 1, 2, 5]))
    return lambda: core_model(K, G, T, S, shapes, softcap=softcap, window=window)


@settings(max_examples=60, deadline=None)
@given(build=cores())
def test_all_at_once(build: Any) -> None:
    assert_lowers(build, False)


@settings(max_examples=60, deadline=None)
@given(build=cores(), blocks=st.tuples(st.integers(1, 3), st.integers(1, 6)))
def test_in_blocks(build: Any, blocks: tuple[int, int]) -> None:
    assert_lowers(build, FlashBlockSizes(*blocks))


def test_slopes_and_sinks_of_a_head_at_a_time() -> None:
    """Flash attention computes some heads at a time: each has slopes and sinks of its own."""

    def build() -> Model:
        return core_model(5, 5, 3, 9, {"slopes": (25,), "sinks": (25,)})

    assert_lowers(build, FlashBlockSizes(2, 4))


@pytest.mark.parametrize("flash", [False, FlashBlockSizes(2, 3)])
def test_slopes_and_sinks_that_are_computed(flash: FlashBlocks) -> None:
    def build() -> Model:
        model = core_model(5, 4, 3, 8, {"slopes": (20,), "sinks": (20,)})
        (graph,) = model.graphs
        node = next(iter(graph))
        for operand in (5, 6):  # slopes and sinks become inputs
            value = node.inputs[operand]
            assert value is not None
            given_ = ir.Value(name=f"{value.name}_in", shape=value.shape, type=value.type)
            graph.inputs.insert(0, given_)
            node.replace_input_with(operand, given_)
            model.signatures[0].inputs[given_.name or ""] = given_
        return model

    assert_lowers(build, flash)


def test_large_sinks_and_large_scores_do_not_overflow() -> None:
    model = core_model(1, 2, 2, 4, {"sinks": (2,)}, scale=300.0)
    feeds = graphs.feeds(model) | {"position": np.int32([1])}
    y = graphs.run(lower_to_litert(model), feeds)["y"]
    assert np.isfinite(y).all()
    assert np.abs(y).max() > 0


def test_blocks_of_a_window_begin_at_the_window() -> None:
    """Keys and values before the window are not read: NaN there changes nothing."""
    model = core_model(1, 1, 2, 32, {}, window=4)
    lowered = lower_to_litert(model, FlashBlockSizes(2, 4))
    feeds = graphs.feeds(lowered) | {"position": np.int32([20])}
    for name in ("k", "v"):
        feeds[name][:, :, :16] = np.nan
    assert np.isfinite(graphs.run(lowered, feeds)["y"]).all()


def test_one_query_reads_the_window_alone() -> None:
    """Keys and values outside of the window are not read: NaN there changes nothing."""

    def build() -> Model:
        return core_model(2, 2, 1, 32, {"slopes": (4,), "sinks": (4,)}, window=4, softcap=1.5)

    lowered = lower_to_litert(build())
    for position in (0, 2, 3, 4, 20, 31):
        feeds = graphs.feeds(lowered) | {"position": np.int32([position])}
        first = max(position - 3, 0)
        for name in ("k", "v"):
            feeds[name][:, :, :first] = feeds[name][:, :, first + 4 :] = np.nan
        y = graphs.run(lowered, feeds)["y"]
        assert np.isfinite(y).all()
        for name in ("k", "v"):
            feeds[name][np.isnan(feeds[name])] = 0
        assert_close(y, run_graph(build().graphs[0], feeds)["y"])
