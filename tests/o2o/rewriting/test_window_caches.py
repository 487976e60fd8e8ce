"""Window caches give the results of full caches, wherever their rows begin; what is unknown is refused."""

from __future__ import annotations

import numpy as np
import pytest

from o2o import formats
from o2o.contract import Role, role_of
from o2o.model import Model, shape_of
from o2o.operators import reference
from o2o.rewriting.cache_buckets import add_cache_buckets, most_rows
from o2o.rewriting.matchers import MatchFailure
from o2o.rewriting.window_caches import WindowLayers, shrink_window_caches, window_layers
from o2o.signatures import buckets_of, capacity_of, decode_of
from tests.o2o.graphs import Graph
from tests.o2o.window_graphs import WINDOW, H, S, T, logits_of, window_model
from tests.tolerances import assert_close

ROWS = 11


def test_the_layers_and_the_rows_they_need() -> None:
    of = window_layers(window_model())
    assert of == WindowLayers([0], WINDOW, T, S)
    assert (of.smallest, of.default_rows) == (WINDOW - 1 + T, WINDOW + 2 * T)
    assert window_layers(window_model(windows=(0, 0))) is None
    assert window_layers(window_model(rows=ROWS)) is None


@pytest.mark.parametrize("length", [T, 1])
@pytest.mark.parametrize("first", [0, 1, 7, 30])
def test_the_same_as_full_caches(length: int, first: int) -> None:
    """At each position that rows from `first` on allow: logits, and the new rows."""
    full, model = window_model(lengths=[length]), window_model(ROWS, lengths=[length])
    model = formats.loads(formats.dumps(model))
    rng = np.random.default_rng(0)
    caches = {
        value.name: rng.standard_normal(shape_of(value), np.float32)
        for value in full.graphs[0].inputs
        if value.name and value.name.startswith("past")
    }
    ids = rng.integers(0, 23, (1, length)).astype(np.int32)
    lowest = first + WINDOW - 1 if first else 0
    for position in range(lowest, min(first + ROWS, S) - length + 1):
        given = {"ids": ids, "position": np.array([position], np.int32), **caches}
        expected = reference.run_graph(full.graphs[0], {name: array.copy() for name, array in given.items()})
        rows = slice(first, first + ROWS)
        given["window_row"] = np.array([position - first], np.int32)
        for kind in ("key", "value"):
            cut = np.zeros((1, 1, ROWS, H), np.float32)
            held = caches[f"past_{kind}_0"][:, :, rows]
            cut[:, :, : held.shape[2]] = held
            given[f"past_{kind}_0"] = cut
        actual = reference.run_graph(model.graphs[0], given)
        assert_close(actual["logits"], expected["logits"])
        new, row = slice(position, position + length), slice(position - first, position - first + length)
        for kind in ("key", "value"):
            name = f"present_{kind}_0"
            assert_close(actual[name][:, :, row], expected[name][:, :, new])
            assert_close(actual[f"present_{kind}_1"], expected[f"present_{kind}_1"])


def test_the_model_of_these_tests_is_what_numpy_computes() -> None:
    model = window_model(lengths=[1])
    ids = np.random.default_rng(3).integers(0, 23, 20)
    caches = {
        v.name or "": np.zeros(shape_of(v), np.float32) for v in model.graphs[0].inputs if role_of(v).is_cache
    }  # type: ignore[union-attr]
    for position, logits in enumerate(logits_of(ids.tolist())):
        now = {"ids": ids[position].reshape(1, 1), "position": np.array([position])}
        given = {name: array.astype(np.int32) for name, array in now.items()}
        results = reference.run_graph(model.graphs[0], {**given, **caches})
        caches = {name: results[name.replace("past", "present")] for name in caches}
        assert_close(results["logits"][0, 0], logits)


def test_the_contract_has_the_capacity() -> None:
    model = window_model(ROWS)
    decode = decode_of(model)
    assert role_of(decode.inputs["past_key_0"]) == Role("key_cache", 0, "BNTH", WINDOW, capacity=S)
    assert role_of(decode.outputs["present_key_0"]) == Role("key", 0, "BNTH", WINDOW, capacity=S)
    assert role_of(decode.inputs["past_key_1"]) == Role("key_cache", 1, "BNTH")
    assert role_of(decode.inputs["window_row"]) == Role("window_row")
    assert list(decode.inputs)[:3] == ["ids", "position", "window_row"]
    assert capacity_of(decode) == S


def test_buckets_cut_window_caches_only_below_their_rows() -> None:
    model = window_model(ROWS)
    add_cache_buckets(model, decode_of(model), [8, 16])
    small, large = buckets_of(model)
    shapes = [
        [shape_of(bucket.inputs[f"past_key_{layer}"])[2] for layer in (0, 1)] for bucket in (small, large)
    ]
    assert shapes == [[8, 8], [ROWS, 16]]
    capacities = [role_of(bucket.inputs["past_key_0"]).capacity for bucket in (small, large)]  # type: ignore[union-attr]
    assert capacities == [None, 16]
    assert [capacity_of(bucket) for bucket in (small, large)] == [8, 16]


def test_a_model_of_window_caches_alone_has_its_capacity() -> None:
    model = window_model(ROWS, windows=(WINDOW, WINDOW))
    assert (capacity_of(decode_of(model)), most_rows(decode_of(model))) == (S, ROWS)


def _refused(model: Model) -> str:
    with pytest.raises(MatchFailure) as failure:
        shrink_window_caches(model, ROWS)
    return str(failure.value)


def _graph_of(model: Model) -> Graph:
    graph = Graph("g")
    graph.ir = model.graphs[0]
    return graph


def test_caches_that_are_read_by_another_operator_stay_full() -> None:
    model = window_model(lengths=[1])
    graph = _graph_of(model)
    for cache in [v for v in graph.ir.outputs if v.name and v.name.endswith("_0")]:
        graph.output(graph.op("NEG", [cache], shape_of(cache)))
    assert window_layers(model) is None


def test_caches_with_a_mask_stay_full() -> None:
    model = window_model(lengths=[1])
    graph = _graph_of(model)
    mask = graph.constant("mask", np.zeros((1, 1, 1, S), np.float32))
    for node in graph.ir:
        if node.op_type == "o2o.attention":
            node.resize_inputs(5)
            node.replace_input_with(4, mask)
    assert window_layers(model) is None


def test_rows_that_are_written_elsewhere() -> None:
    model = window_model(lengths=[1])
    graph = _graph_of(model)
    start = next(n for n in graph.ir if n.op_type == "CONCATENATION")
    start.replace_input_with(1, start.inputs[2])
    assert "the row that is written or read is [0, 1, 1, 0] at position 1" in _refused(model)


def test_several_positions() -> None:
    model = window_model(lengths=[T])
    for value in model.graphs[0].inputs:
        if value.name == "position":
            value.meta.pop("role")
    assert "does not take the position of its first token" in _refused(model)


def test_signatures_that_differ_in_their_layers() -> None:
    model, other = window_model(lengths=[T]), window_model(lengths=[1], windows=(0, WINDOW))
    model.graphs += other.graphs
    model.signatures += other.signatures
    with pytest.raises(MatchFailure, match="have windows in different layers"):
        window_layers(model)
