"""`o2o.attention`: its operands and options are checked, written and read; its kernel is torch's softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o import formats
from o2o.errors import ModelError
from o2o.model import CUSTOM_DOMAIN, Model
from o2o.operators.core_attention import (
    OLD_NAME,
    CoreAttention,
    FlashBlockSizes,
    encode_options,
    is_core_attention,
)
from o2o.operators.reference import run_graph
from tests.o2o.graphs import INT32, Graph
from tests.tolerances import assert_close


def core_model(N: int, K: int, T: int, S: int, H: int, operands: str = "", **options: Any) -> Model:
    """One `o2o.attention` of graph inputs; `operands` names the optional ones."""
    graph = Graph("main")
    shapes = {"mask": [1, 1, T, S], "slopes": [N], "sinks": [N]}
    optional = {name: graph.input(name, shape) for name, shape in shapes.items() if name in operands.split()}
    q, k, v = graph.input("q", [1, N, T, H]), graph.input("k", [1, K, S, H]), graph.input("v", [1, K, S, H])
    position = graph.input("position", [1], INT32)
    node = CoreAttention(q, k, v, position, **{"scale": H**-0.5} | options, **optional).build("y")
    graph.ir.append(node)
    graph.output(*node.outputs)
    return graph.model()


def node_of(model: Model) -> ir.Node:
    return next(iter(model.graphs[0]))


def row(q: Any, k: Any, v: Any, n: int, t: int, feeds: dict[str, Any], of: CoreAttention) -> np.ndarray:
    """One head of one query, key by key, in float64."""
    logits, values = [], []
    here = int(feeds["position"][0]) + t
    for j in range(k.shape[1]):
        if "mask" not in feeds and (j > here or (of.window and j <= here - of.window)):
            continue
        score = float(q[n, t] @ k[n // (q.shape[0] // k.shape[0]), j]) * of.scale
        score = of.softcap * np.tanh(score / of.softcap) if of.softcap else score
        score += float(feeds["slopes"][n]) * (j - here) if "slopes" in feeds else 0.0
        score += float(feeds["mask"][0, 0, t, j]) if "mask" in feeds else 0.0
        logits.append(score)
        values.append(v[n // (q.shape[0] // k.shape[0]), j])
    extra = [float(feeds["sinks"][n])] if "sinks" in feeds else []
    weights = np.exp(np.array([*logits, *extra]) - max([*logits, *extra]))
    return weights[: len(logits)] / weights.sum() @ np.array(values, np.float64)


@settings(max_examples=60, deadline=None)
@given(
    heads=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    T=st.integers(1, 5),
    room=st.integers(0, 6),
    operands=st.lists(st.sampled_from(["mask", "slopes", "sinks"]), unique=True).map(" ".join),
    softcap=st.sampled_from([0.0, 1.5]),
    window=st.sampled_from([0, 1, 3]),
    position=st.integers(0, 6),
)
def test_kernel_is_attention_key_by_key(
    heads: tuple[int, int], T: int, room: int, operands: str, softcap: float, window: int, position: int
) -> None:
    G, K = heads
    model = core_model(G * K, K, T, T + room, 4, operands, scale=0.7, softcap=softcap, window=window)
    (graph,) = model.graphs
    generator = np.random.default_rng(position)
    feeds: dict[str, Any] = {
        value.name or "": generator.standard_normal(value.shape.numpy()).astype(np.float32)  # type: ignore[union-attr]
        for value in graph.inputs
    }
    feeds["position"] = np.int32([min(position, room)])
    (y,) = run_graph(graph, feeds).values()
    q, k, v = (feeds[name][0].astype(np.float64) for name in "qkv")
    of = CoreAttention.of(node_of(model))
    expected = [[row(q, k, v, n, t, feeds, of) for n in range(G * K)] for t in range(T)]
    assert_close(y[0], np.array(expected))


def test_a_file_keeps_operands_and_options() -> None:
    model = core_model(4, 2, 3, 8, 4, "sinks", softcap=30.0, window=5, blocks=FlashBlockSizes(2, 4))
    read = formats.loads(formats.dumps(model))
    of = CoreAttention.of(node_of(read))
    assert (of.scale, of.softcap, of.window, of.blocks) == (0.5, 30.0, 5, FlashBlockSizes(2, 4))
    assert (of.N, of.K, of.T, of.S, of.H) == (4, 2, 3, 8, 4)
    assert of.mask is None
    assert of.slopes is None
    assert of.sinks is not None
    assert of.sinks.name == "sinks"
    assert of.extras == ["attention sinks", "a soft-cap", "a window of 5 keys"]


def test_a_file_with_the_old_name() -> None:
    from flatbuffers import flexbuffers

    graph = Graph("main")
    q, k, v = (graph.input(name, [1, 2, 3, 4]) for name in "qkv")
    y = graph.value("y", [1, 3, 2, 4])
    node = graph.node(OLD_NAME, [q, k, v, graph.input("p", [1], INT32)], [y], domain=CUSTOM_DOMAIN)
    options = bytes(flexbuffers.Dumps({"scale": 0.25, "q_block": 0, "kv_block": 0}))
    node.meta["fields"] = {"customOptions": np.frombuffer(options, np.uint8)}
    graph.output(y)
    (old,) = formats.loads(formats.dumps(graph.model())).graphs[0]
    assert is_core_attention(old)
    of = CoreAttention.of(old)
    assert (of.scale, of.softcap, of.window, of.blocks, of.extras) == (0.25, 0.0, 0, None, [])


@pytest.mark.parametrize(
    ("operand", "shape"),
    [
        ("q", (2, 4, 3, 8)),
        ("q", (1, 3, 3, 8)),
        ("k", (1, 2, 6, 4)),
        ("v", (1, 2, 5, 8)),
        ("position", None),
        ("mask", (1, 1, 2, 6)),
        ("slopes", (2,)),
        ("sinks", (4, 1)),
    ],
)
def test_other_operands_are_refused(operand: str, shape: tuple[int, ...] | None) -> None:
    model = core_model(4, 2, 3, 6, 8, "mask slopes sinks")
    node = node_of(model)
    index = ("q", "k", "v", "position", "mask", "slopes", "sinks").index(operand)
    value = node.inputs[index]
    assert value is not None
    if shape is None:
        node.replace_input_with(index, None)
    else:
        value.shape = ir.Shape(shape)
    with pytest.raises(ModelError, match=r"o2o\.attention y takes .*, not q \[1, N, T, H\]"):
        CoreAttention.of(node)


@pytest.mark.parametrize(
    "options",
    [
        *(None, b"", b"\x01\x02\x03", b"\x05\x04\x01"),
        encode_options(1.0, FlashBlockSizes(-4, 8)),
        encode_options(float("nan")),
        encode_options(1.0, softcap=-1.0),
        encode_options(1.0, window=-1),
    ],
)
def test_damaged_options(options: bytes | None) -> None:
    node = node_of(core_model(1, 1, 1, 2, 4))
    node.meta["fields"] = {} if options is None else {"customOptions": options}
    with pytest.raises(ModelError, match=r"o2o\.attention y has damaged options"):
        CoreAttention.of(node)


def test_blocks_as_they_are_written() -> None:
    assert FlashBlockSizes.parse("64,512") == FlashBlockSizes(64, 512)
    for text in ("", "64", "a,b", "1,2,3"):
        with pytest.raises(ValueError, match="give two block sizes, such as 64,512"):
            FlashBlockSizes.parse(text)
    with pytest.raises(ValueError, match="a block has at least one query and one key"):
        FlashBlockSizes.parse("64,0")
