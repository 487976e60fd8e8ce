"""Decode over fewer rows of its caches gives what it gives over all of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.contract import Role, contract_of, role_of
from o2o.filters.fuse_attention import FuseAttention
from o2o.formats.tensors import storage_key
from o2o.lower.litert import attention as lowered_attention
from o2o.lower.litert import lower_to_litert
from o2o.lower.litert.tuning import tune
from o2o.model import Model, Signature
from o2o.operators import reference
from o2o.rewriting import cache_buckets as capacity_module
from o2o.rewriting.builder import Builder
from o2o.rewriting.cache_buckets import add_cache_buckets, default_capacities
from o2o.rewriting.cache_layout import transpose_caches
from o2o.rewriting.matchers import MatchFailure, producer_of
from o2o.rewriting.simplify_layout_ops import simplify_layout_ops
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import Graph, exported_feeds, feeds, operators
from tests.o2o.language_model_graphs import language_model
from tests.o2o.lower.litert.test_lowering import decode_of
from tests.o2o.roles.decoders import Form as DecoderForm
from tests.o2o.roles.decoders import decoder
from tests.tolerances import assert_close

S = 32
CAPACITIES = [1, 5, 8, 31]

FORMS: dict[str, Callable[[Model], Model]] = {
    "fused": lambda model: model,
    "lowered": lower_to_litert,
    "written and read": lambda model: formats.loads(formats.dumps(lower_to_litert(model))),
}


def decode(model: Model) -> Signature:
    return next(signature for signature in model.signatures if signature.name == "decode")


def outputs(signature: Signature, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a signature: its outputs, and its caches afterwards."""
    given = {value.name or "": feeds[name] for name, value in signature.inputs.items()}
    actual = reference.run_graph(signature.graph, given)
    made = {name: actual[value.name or ""] for name, value in signature.outputs.items()}
    return made | {name: array for name, array in feeds.items() if array.ndim == 4}


def assert_same_at_each_position(model: Model, capacity: int, axis: int) -> None:
    whole, part = decode(model), next(s for s in model.signatures if s.name == f"decode_{capacity}")
    assert list(part.inputs) == list(whole.inputs)
    assert list(part.outputs) == list(whole.outputs)
    feeds = exported_feeds(Model(model.format, [whole.graph], [whole]), 0)
    generator = np.random.default_rng(0)
    for position in {0, capacity // 2, capacity - 1}:
        feeds["cache_position"] = np.full_like(feeds["cache_position"], position)
        for name in feeds:
            if name.startswith("past_"):
                feeds[name] = generator.standard_normal(feeds[name].shape, np.float32)
        first = (slice(None),) * axis + (slice(capacity),)
        expected = outputs(whole, {name: array.copy() for name, array in feeds.items()})
        cut = {n: np.ascontiguousarray(a[first] if a.ndim == 4 else a) for n, a in feeds.items()}
        actual = outputs(part, cut)
        for name, array in expected.items():
            assert_close(actual[name], array[first] if array.ndim == 4 else array, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "exported", "layout"),
    [("demo", "concat", "BTNH"), ("grouped", "concat", "BNTH"), ("grouped", "static", "BTNH")],
)
def test_the_same_at_every_edge(exported_model, shape: str, exported: str, layout: str, form: str) -> None:
    model = FORMS[form](decode_of(exported_model, shape, exported, layout))
    add_cache_buckets(model, decode(model), CAPACITIES)
    model = formats.loads(formats.dumps(model))
    for capacity in CAPACITIES:
        assert_same_at_each_position(model, capacity, axis=1 if layout == "BTNH" else 2)


def test_weights_are_there_once(exported_model) -> None:
    model = lower_to_litert(decode_of(exported_model, "grouped", "concat", "BNTH"))
    before = len(formats.dumps(model))
    add_cache_buckets(model, decode(model), [8])
    large = [
        {storage_key(v.const_value) for v in graph.initializers.values() if v.const_value.nbytes > 4 * S}
        for graph in model.graphs
    ]
    assert large[1] <= large[0]
    assert len(formats.dumps(model)) < 2 * before
    decode_8 = contract_of(model)["signatures"]["decode_8"]
    assert [entry["shape"][2] for entry in decode_8["inputs"] if "layer" in entry] == [8] * 6


@pytest.mark.parametrize("layout", ["BNTH", "BTNH"])
def test_tuning_turns_caches_without_moving_them(exported_model, layout: str) -> None:
    model = lower_to_litert(decode_of(exported_model, "grouped", "concat", layout))
    assert tune(model, [8])
    assert [signature.name for signature in model.signatures] == ["decode", "decode_8"]
    for graph in model.graphs:
        assert operators(Model("tflite", [graph])).get("TRANSPOSE", 0) == 0
    for signature in contract_of(model)["signatures"].values():
        assert {entry["layout"] for entry in signature["inputs"] if "layer" in entry} == {"BNTH"}
    assert_same_at_each_position(model, 8, axis=2)
    assert not tune(model, [S])
    assert not tune(model)


def test_default_capacities() -> None:
    assert [default_capacities(capacity) for capacity in (1, 256, 257, 1024, 2049, 131_072)] == [
        [],
        [],
        [256],
        [256, 512, 768],
        [256, 512, 768, 1024, 1536, 2048],
        [256, 512, 768, 1024],
    ]


# --- near misses ----------------------------------------------------------------------------------------


def refusal(model: Model, capacities: list[int]) -> str:
    signature = model.signatures[-1]
    graphs, signatures = list(model.graphs), list(model.signatures)
    with pytest.raises(MatchFailure) as refused:
        add_cache_buckets(model, signature, capacities)
    assert (model.graphs, model.signatures) == (graphs, signatures), "nothing is left half done"
    return str(refused.value)


def test_a_sum_over_rows_is_not_shortened() -> None:
    assert "rows are summed without softmax weights" in refusal(language_model((1,), ("decode",)), [4])


def test_caches_must_be_told() -> None:
    model = attention(Form(layout="BNTH", has_roles=False))
    assert refusal(model, [4]) == "decode has no KV caches in its contract"


def test_a_given_mask_is_as_long_as_the_caches() -> None:
    model = attention(Form(layout="BNTH", mask=(1, 1, 1, 7)))
    assert refusal(model, [4]).startswith("ATTENTION computes with cache rows")


def test_masks_too_large_to_be_proven(monkeypatch) -> None:
    monkeypatch.setattr(capacity_module, "BUDGET", 20)
    assert refusal(scores(), [3]).startswith("the masks are too large for a proof at 3 positions")
    model = scores()
    add_cache_buckets(model, model.signatures[0], [2])


def scores(hide: str = "behind", weigh: str = "SOFTMAX", write: str = "at position") -> Model:
    """One head's attention over past_value_0 [1, 1, 8, 4], a cache that is written at the position."""
    graph = Graph("decode")
    position = graph.input("position", [1], ir.DataType.INT32)
    cache = graph.input("past_value_0", [1, 1, 8, 4])
    cache.meta["role"] = Role("value_cache", 0, "BNTH")
    zeros = [graph.constant(f"zeros_{n}", np.zeros(n, np.int32)) for n in (2, 1)]
    at = position
    if write != "at position":
        seven = graph.constant("seven", np.int32([7]))
        at = graph.op("SUB", [seven, position], [1], ir.DataType.INT32)
    start = graph.op("CONCATENATION", [zeros[0], at, zeros[1]], [4], ir.DataType.INT32, axis=0)
    row = graph.input("row", [1, 1, 1, 4])
    values = graph.op("DYNAMIC_UPDATE_SLICE", [cache, row, start], [1, 1, 8, 4], name="present_value_0")
    values.meta["role"] = Role("value", 0, "BNTH")
    rank = {"adjointLhs": False, "adjointRhs": True}
    dots = graph.op("BATCH_MATMUL", [row, values], [1, 1, 1, 8], name="dots", **rank)
    keys = graph.constant("keys", np.arange(8, dtype=np.int32)[None])
    compare = {"behind": "LESS_EQUAL", "before": "GREATER_EQUAL"}.get(hide, "LESS_EQUAL")
    seen = graph.op(compare, [keys, position], [1, 8], ir.DataType.BOOL)
    ends = [graph.constant("shown", np.float32(0)), graph.constant("hidden", np.float32(-1e9))]
    mask = graph.op("SELECT_V2", [seen, *ends], [1, 8], ir.DataType.FLOAT, "mask")
    if hide == "none":
        mask = graph.constant("nothing", np.zeros((1, 8), np.float32))
    masked = graph.op("ADD", [dots, mask], [1, 1, 1, 8], name="masked")
    weights = graph.op(
        weigh, [masked], [1, 1, 1, 8], name="weights", **{"beta": 1.0} if weigh == "SOFTMAX" else {}
    )
    rank["adjointRhs"] = False
    graph.output(graph.op("BATCH_MATMUL", [weights, values], [1, 1, 1, 4], name="y", **rank))
    graph.output(values)
    return graph.model()


def test_what_the_near_misses_miss() -> None:
    model = scores()
    add_cache_buckets(model, model.signatures[0], [3])
    feeds = {
        "position": np.int32([2]),
        "past_value_0": np.random.default_rng(0).standard_normal((1, 1, 8, 4), np.float32),
        "row": np.ones((1, 1, 1, 4), np.float32),
    }
    cut = feeds | {"past_value_0": feeds["past_value_0"][:, :, :3]}
    whole, part = (reference.run_graph(g, f)["y"] for g, f in zip(model.graphs, (feeds, cut), strict=True))
    assert_close(part, whole)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hide": "before"}, "the mask goes beyond 3 rows at a position below"),
        ({"hide": "none"}, "the mask is the same at every position"),
        ({"weigh": "EXP"}, "rows are summed without softmax weights"),
        ({"write": "backwards"}, "the row that is written goes beyond 3 rows at a position below"),
    ],
)
def test_near_misses(change: dict[str, str], reason: str) -> None:
    assert reason in refusal(scores(**change), [3])


# --- layouts that undo each other -----------------------------------------------------------------------


def test_collapsing_keeps_the_numbers(exported_model) -> None:
    model = lower_to_litert(decode_of(exported_model, "grouped", "static", "BTNH"))
    graph = model.graphs[0]
    feeds = exported_feeds(model, 3)
    expected = outputs(decode(model), feeds)
    transpose_caches(model, graph, "BNTH")
    transpose_caches(model, graph, "BTNH")
    simplify_layout_ops(model, graph)
    assert all(
        producer_of(node.inputs[0], node.op_type) is None
        for node in graph
        if node.op_type in ("TRANSPOSE", "RESHAPE")
    )
    actual = outputs(decode(model), feeds)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array)


def windowed(window: int, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A lowered decode over 6 rows, of which each attention reads the window's alone."""
    monkeypatch.setattr(lowered_attention, "WINDOWS", 2)
    model, roles = decoder(DecoderForm(window=window))
    for value, role in roles.items():
        value.meta["role"] = role
    FuseAttention().apply(model, argparse.Namespace(explain=False, assume_full_cache=None, core=True))
    lower_to_litert(model)
    assert operators(model)["SLICE"] == 4
    return model


@pytest.mark.parametrize("window", [2, 3])
def test_buckets_on_both_sides_of_a_window(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket of at most the window's rows reads all of them; a larger one reads the window."""
    model, capacities = windowed(window, monkeypatch), [1, 2, 3, 4, 5]
    add_cache_buckets(model, model.signatures[0], capacities)
    model = formats.loads(formats.dumps(model))
    whole, *parts = model.signatures
    position = next(name for name, value in whole.inputs.items() if role_of(value) == Role("position"))
    all_feeds = feeds(Model(model.format, [whole.graph], [whole]))
    for capacity, part in zip(capacities, parts, strict=True):
        assert operators(Model("tflite", [part.graph]))["SLICE"] == (4 if capacity > window else 0)
        cut = {
            n: np.ascontiguousarray(a[:, :, :capacity]) if a.ndim == 4 else a for n, a in all_feeds.items()
        }
        for row in range(capacity):
            all_feeds[position] = cut[position] = np.int32([row])
            expected, actual = outputs(whole, all_feeds), outputs(part, cut)
            for name in part.outputs:
                array = expected[name]
                assert_close(actual[name], array[:, :, :capacity] if array.ndim == 4 else array)


def test_a_window_that_reaches_beyond_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    model = windowed(3, monkeypatch)
    for node in model.graphs[0]:
        if any(use.node.op_type == "MAXIMUM" for use in node.outputs[0].uses()):
            node.replace_input_with(1, Builder(model.graphs[0], before=node).constant([1], "one", np.int32))
    with pytest.raises(
        MatchFailure, match="the first row of a window goes beyond 4 rows at a position below 4"
    ):
        add_cache_buckets(model, model.signatures[0], [4])
