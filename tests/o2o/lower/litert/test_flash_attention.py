"""Flash attention on LiteRT is attention, at every position and whatever the blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2o import formats
from o2o.cli.silence_stderr import silenced_stderr
from o2o.lower.litert import lower_to_litert
from o2o.lower.litert.attention import fast_blocks
from o2o.model import DOMAIN, Model, Signature
from o2o.operators.core_attention import (
    CoreAttention,
    FlashBlockSizes,
    adaptive_blocks,
)
from tests.tolerances import assert_close


def causal_model(
    T: int, S: int, N: int, K: int, H: int, blocks: FlashBlockSizes | None, layers: int = 1
) -> Model:
    """q [1, N, T, H], k and v [1, K, S, H], position -> y [1, T, N, H], by the custom operator; all layers
    read the same."""
    shapes = {"q": (1, N, T, H), "k": (1, K, S, H), "v": (1, K, S, H), "position": (1,)}
    inputs = {
        name: ir.Value(
            name=name,
            shape=ir.Shape(shape),
            type=ir.TensorType(ir.DataType.INT32 if name == "position" else ir.DataType.FLOAT),
        )
        for name, shape in shapes.items()
    }
    graph = ir.Graph(list(inputs.values()), [], nodes=[], name="main", opset_imports={DOMAIN: 1})
    outputs = {}
    for layer in range(layers):
        node = CoreAttention(*inputs.values(), scale=H**-0.5, blocks=blocks).build(f"y{layer}")
        (y,) = node.outputs
        graph.append(node)
        graph.outputs.append(y)
        outputs[f"y{layer}"] = y
    return Model("circle", [graph], [Signature("main", graph, dict(inputs), outputs)])


def expected(q: np.ndarray, k: np.ndarray, v: np.ndarray, position: int) -> np.ndarray:
    """Attention in float64, [1, T, N, H]."""
    T, S, groups = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    k, v = (x.astype(np.float64).repeat(groups, 1) for x in (k, v))
    scores = q @ k.transpose(0, 1, 3, 2) * q.shape[-1] ** -0.5
    scores = np.where(np.arange(S) <= position + np.arange(T)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)


def check(model: Model, tmp_path: Path, positions: list[int]) -> None:
    """Lower and run at each of `positions`, and compare with float64."""
    formats.save(lower_to_litert(model), tmp_path / "flash.tflite")
    with silenced_stderr():
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(model_path=str(tmp_path / "flash.tflite")).get_signature_runner("main")
    generator = np.random.default_rng(0)
    shapes = {name: detail["shape"] for name, detail in runner.get_input_details().items()}
    q, k, v = (3 * generator.standard_normal(shapes[name]).astype(np.float32) for name in "qkv")
    for position in positions:
        found = runner(q=q, k=k, v=v, position=np.array([position], np.int32))
        for y in found.values():
            assert_close(y, expected(q, k, v, position))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    T=st.integers(1, 9),
    room=st.integers(0, 9),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    blocks=st.tuples(st.integers(1, 6), st.integers(1, 9)),
)
def test_any_shape_at_any_position(
    tmp_path: Path, T: int, room: int, heads: tuple[int, int], blocks: tuple[int, int]
) -> None:
    S, (groups, K) = T + room, heads
    model = causal_model(T, S, groups * K, K, 4, FlashBlockSizes(*blocks))
    check(model, tmp_path, list(range(room + 1)))


def test_without_blocks(tmp_path: Path) -> None:
    check(causal_model(5, 12, 6, 2, 8, None), tmp_path, [0, 3, 7])


def test_blocks_by_default(tmp_path: Path) -> None:
    check(causal_model(70, 530, 2, 1, 4, None), tmp_path, [0, 1, 128, 460])


@pytest.mark.parametrize(
    ("tokens", "q", "kv"),
    [
        (2, 2, 64),
        (64, 64, 64),
        (65, 65, 128),
        (128, 128, 128),
        (192, 96, 128),
        (512, 128, 128),
        (768, 256, 128),
    ],
)
def test_fast_blocks(tokens: int, q: int, kv: int) -> None:
    assert fast_blocks(tokens) == FlashBlockSizes(q, kv)


def test_layers_share_the_loop(tmp_path: Path) -> None:
    model = causal_model(8, 16, 2, 2, 4, FlashBlockSizes(4, 8), layers=3)
    check(model, tmp_path, [0, 8])
    assert len(model.graphs) == 3  # main, condition, body
    assert sum(node.op_type == "WHILE" for node in model.graphs[0]) == 3 * 2


def test_scores_exist_by_the_block(tmp_path: Path) -> None:
    model = lower_to_litert(causal_model(64, 128, 4, 2, 8, FlashBlockSizes(16, 32)))
    largest = max(
        int(np.prod(value.shape.numpy()))
        for graph in model.graphs
        for node in graph
        for value in node.outputs
    )
    assert largest == max(4 * 16 * 32, 4 * 64 * 8, 2 * 128 * 8)  # scores of a block, queries, keys


def test_what_fits_into_one_block_has_no_loop() -> None:
    model = lower_to_litert(causal_model(4, 8, 2, 2, 4, FlashBlockSizes(4, 8)))
    assert len(model.graphs) == 1


def test_the_loop_ends_with_the_last_key_that_is_seen(tmp_path: Path) -> None:
    """What lies behind is never read, not even to be multiplied by 0: there, NaN would spread."""
    model = causal_model(4, 32, 2, 2, 4, FlashBlockSizes(2, 8))
    formats.save(lower_to_litert(model), tmp_path / "flash.tflite")
    with silenced_stderr():
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(model_path=str(tmp_path / "flash.tflite")).get_signature_runner("main")
    q = np.ones((1, 2, 4, 4), np.float32)
    k, v = np.ones((2, 1, 2, 32, 4), np.float32)
    k[:, :, 16:], v[:, :, 16:] = np.nan, np.nan
    for position in (0, 8, 12):  # the last query is at 15
        assert np.isfinite(runner(q=q, k=k, v=v, position=np.array([position], np.int32))["y0"]).all()
    assert np.isnan(runner(q=q, k=k, v=v, position=np.array([13], np.int32))["y0"]).any()


def test_adaptive_blocks() -> None:
    sizes = {1: 32, 191: 32, 192: 64, 767: 64, 768: 256, 4096: 256}
    assert {tokens: adaptive_blocks(tokens) for tokens in sizes} == {
        t: FlashBlockSizes(q, 512) for t, q in sizes.items()
    }


@pytest.mark.parametrize("blocks", [None, FlashBlockSizes(64, 512)])
def test_options_survive(blocks: FlashBlockSizes | None) -> None:
    (node,) = causal_model(1, 2, 1, 1, 4, blocks).graphs[0]
    assert (CoreAttention.of(node).scale, CoreAttention.of(node).blocks) == (0.5, blocks)
