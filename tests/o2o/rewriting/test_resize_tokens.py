"""A graph for another number of tokens computes the same for each token."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o2o.contract import Role
from o2o.formats.tensors import constant_array
from o2o.lower.litert import lower_to_litert
from o2o.model import Model, Signature, shape_of
from o2o.operators import reference
from o2o.rewriting.matchers import MatchFailure
from o2o.rewriting.resize_tokens import TokenResizer, tokens_of
from tests.o2o.graphs import operators
from tests.o2o.language_model_graphs import greedy_logits, language_model
from tests.o2o.window_graphs import S, V, logits_of, window_model
from tests.tolerances import assert_close


def rows_of(signature: Signature, ids: list[int]) -> np.ndarray:
    """The logits of each token of a text that a signature reads in chunks, [P, V]."""
    tokens, rows = tokens_of(signature), []
    feeds = {
        value.name or "": np.zeros(shape_of(value), value.dtype.numpy())  # type: ignore[union-attr]
        for value in signature.inputs.values()
    }
    for start in range(0, len(ids), tokens):
        for name, value in signature.inputs.items():
            role = value.meta["role"]
            if role.kind == "tokens":
                feeds[value.name or name] = np.asarray([ids[start : start + tokens]], value.dtype.numpy())  # type: ignore[union-attr]
            elif role.kind == "position":
                feeds[value.name or name] = np.asarray([start], value.dtype.numpy())  # type: ignore[union-attr]
        results = reference.run_graph(signature.graph, feeds)
        rows.append(results["logits"][0])
        for name in feeds:
            if name.startswith("past_"):
                feeds[name] = results[name.replace("past_", "present_")]
    return np.concatenate(rows)


@settings(max_examples=6, deadline=None)
@given(tokens=st.integers(1, 12), own=st.integers(2, 9))
def test_each_token_has_the_logits_of_the_whole_text(tokens: int, own: int) -> None:
    model = window_model(lengths=(own,))
    (source,) = model.signatures
    resized = TokenResizer(source).add(model, tokens, "resized")
    assert (tokens_of(resized), tokens_of(source)) == (tokens, own)
    ids = np.random.default_rng(0).integers(0, V, 36 // tokens * tokens).tolist()
    assert_close(rows_of(resized, ids), logits_of(ids))


def test_the_graph_that_an_export_writes_for_this_number() -> None:
    model, expected = window_model(lengths=(7,)), window_model(lengths=(4,))
    resized = TokenResizer(model.signatures[0]).add(model, 4, "prefill_4")
    assert [(node.op_type, shape_of(node.outputs[0])) for node in resized.graph] == [
        (node.op_type, shape_of(node.outputs[0])) for node in expected.graphs[0]
    ]
    for name, value in resized.graph.initializers.items():
        assert np.array_equal(constant_array(value), constant_array(expected.graphs[0].initializers[name])), (
            name
        )  # type: ignore[arg-type]


@pytest.mark.parametrize("tokens", [1, 2, 8])
def test_weights_of_keys_by_position(tokens: int) -> None:
    model = language_model((4,), ("prefill_4",))
    resized = TokenResizer(model.signatures[0]).add(model, tokens, "resized")
    ids = [1, 2, 3, 4, 5, 6, 7, 8]
    assert_close(rows_of(resized, ids)[-1], greedy_logits(ids))


def test_a_lowered_graph() -> None:
    model = lower_to_litert(window_model(lengths=(6,)))
    resized = TokenResizer(model.signatures[0]).add(model, 3, "resized")
    ids = np.random.default_rng(0).integers(0, V, 24).tolist()
    assert "SOFTMAX" in operators(Model("tflite", [resized.graph]))
    assert_close(rows_of(resized, ids), logits_of(ids))


def test_a_prefill_without_caches_becomes_shorter_and_never_longer() -> None:
    model = window_model(lengths=(), without_caches=6)
    resizer = TokenResizer(model.signatures[0])
    ids = [3, 1, 4]
    assert_close(rows_of(resizer.add(model, 3, "short"), ids), logits_of(ids))
    with pytest.raises(MatchFailure, match="does not show what its tokens see"):
        resizer.add(model, 7, "long")


def node_of(model: Model, op_type: str) -> ir.Node:
    return next(node for node in model.graphs[0] if node.op_type == op_type)


def test_refused_where_tokens_are_mixed() -> None:
    model = window_model(lengths=(6,))
    attention = node_of(model, "o2o.attention")
    other = ir.Value(name="other", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT32))
    other.meta["role"] = Role("position")
    model.graphs[0].inputs.append(other)
    attention.replace_input_with(3, other)
    with pytest.raises(MatchFailure, match="another position than the rows that are written"):
        TokenResizer(model.signatures[0]).add(model, 3, "resized")


def test_refused_where_later_tokens_are_seen() -> None:
    model = language_model((4,), ("prefill_4",))
    node = node_of(model, "LESS_EQUAL")
    slots = node.inputs[0]
    assert slots is not None
    slots.const_value = ir.Tensor(np.arange(-1, 7, dtype=np.int32)[None, None], name="slots")
    with pytest.raises(MatchFailure, match="keys of later tokens are visible at position 0"):
        TokenResizer(model.signatures[0]).add(model, 3, "resized")


def test_refused_where_constants_do_not_continue() -> None:
    model = window_model(lengths=(6,))
    steps = model.graphs[0].initializers["steps"]
    steps.const_value = ir.Tensor(np.int32([0, 1, 2, 3, 4, 6]), name="steps")
    resizer = TokenResizer(model.signatures[0])
    resizer.add(model, 3, "short")
    with pytest.raises(MatchFailure, match="its rows do not continue"):
        resizer.add(model, 9, "long")
    with pytest.raises(MatchFailure, match="reads 1 token"):
        TokenResizer(window_model(lengths=(1,)).signatures[0])
    with pytest.raises(MatchFailure):
        TokenResizer(window_model(lengths=(6,)).signatures[0]).add(model, S + 1, "too long")
