"""transpose.io.kvcache: caches in another layout, and everything else unchanged."""

from __future__ import annotations

import argparse

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.contract import Role, contract_of, role_of
from o2o.filters.fuse_attention import FuseAttention
from o2o.filters.transpose_io_kvcache import TransposeIoKvcache
from o2o.lower.litert import lower_to_litert
from o2o.model import Model, shape_of
from o2o.operators import reference
from tests.o2o import graphs
from tests.o2o.attention_graphs import Form as Scattered
from tests.o2o.attention_graphs import build, feeds_at
from tests.o2o.filters.conftest import Command
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.fused_graphs import feeds_at as fused_feeds_at
from tests.o2o.graphs import BOOL, FLOAT, SAMPLES, Graph, exported_feeds, linear, operators
from tests.o2o.language_model_graphs import language_model
from tests.tolerances import assert_close


def transposed(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 2, 1, 3).copy()


def is_cache(name: str) -> bool:
    return name.startswith(("past_", "present_"))


def assert_turned(before: Model, after: Model, given: dict[str, np.ndarray]) -> None:
    """The same numbers out, keys and values transposed; and the same written into the caches."""
    copy = {name: transposed(array) if is_cache(name) else array.copy() for name, array in given.items()}
    expected = reference.run_graph(before.graphs[0], given)
    actual = reference.run_graph(after.graphs[0], copy)
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert_close(transposed(actual[name]) if is_cache(name) else actual[name], array)
    for name, array in given.items():
        assert_close(transposed(copy[name]) if is_cache(name) else copy[name], array)


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("has_roles", [True, False])
@pytest.mark.parametrize("to", ["BTNH", "BNTH"])
def test_attention_takes_either_layout(command: Command, T: int, has_roles: bool, to: str) -> None:
    layout = "BNTH" if to == "BTNH" else "BTNH"
    before = attention(Form(T=T, layout=layout, has_roles=has_roles))
    after = command(before, "--to", to)
    assert command.said == f"transpose.io.kvcache.py: transposed 2 of 2 key/value tensors to {to}\n"
    assert operators(after) == operators(before), "nothing is moved at run time"
    assert [role_of(value) for value in after.graphs[0].inputs[3:5]] == [
        Role("key_cache", 0, to),
        Role("value_cache", 0, to),
    ]
    assert after.history[-1]["arguments"] == ["--to", to]
    for position in (0, 2, 7 - T):
        assert_turned(before, after, fused_feeds_at(before, position))
    lowered = lower_to_litert(formats.loads(formats.dumps(after)))
    given = fused_feeds_at(after, 2)
    actual = graphs.run(lowered, given)
    assert_close(actual["y"], reference.run_graph(after.graphs[0], given)["y"])


@pytest.mark.parametrize("T", [1, 3])
def test_as_many_heads_as_rows_are_told_apart_by_the_contract(command: Command, T: int) -> None:
    before = attention(Form(T=T, K=5, S=5, layout="BNTH"))
    after = command(before)
    assert role_of(after.graphs[0].inputs[3]) == Role("key_cache", 0, "BTNH")
    assert_turned(before, after, fused_feeds_at(before, 1))


def test_as_many_heads_as_rows_without_a_contract(command: Command) -> None:
    code, said = command.refusal(attention(Form(K=5, S=5, layout="BNTH", has_roles=False)))
    assert code == 1
    assert "the layout of the cache past_key_0 [1, 5, 5, 4] of 5 heads" in said


@pytest.mark.parametrize("join", ["concat", "slice"])
def test_other_users_get_a_transpose(command: Command, join: str) -> None:
    form = Scattered(T=2, join=join)
    before = build(form)
    after = command(before)
    assert operators(after)["TRANSPOSE"] == operators(before)["TRANSPOSE"] + 2
    for position in (0, 3):
        given = feeds_at(form, position)
        assert_turned(before, after, given)
        copy = {name: transposed(array) if is_cache(name) else array for name, array in given.items()}
        assert_close(graphs.run(after, copy)["y"], reference.run_graph(before.graphs[0], given)["y"])


@pytest.mark.parametrize("join", ["concat", "slice"])
def test_fusing_may_come_afterwards(command: Command, join: str) -> None:
    """The TRANSPOSE goes: ATTENTION writes the transposed cache in place."""
    form = Scattered(T=2, join=join)
    before, after = build(form), command(build(form))
    FuseAttention().apply(after, argparse.Namespace(explain=True, assume_full_cache=None, core=False))
    assert operators(after)["ATTENTION"] == 1
    assert operators(after)["TRANSPOSE"] == 0
    FuseAttention().apply(before, argparse.Namespace(explain=True, assume_full_cache=None, core=False))
    assert_turned(before, after, feeds_at(form, 3))


def test_attention_and_another_user(command: Command) -> None:
    before = attention(Form(layout="BNTH"))
    graph = Graph("decode")
    graph.ir = before.graphs[0]
    cache = graph.ir.inputs[3]
    look = graph.op("NEG", [cache], [1, 2, 7, 4], name="present_look")
    graph.output(graph.op("ABS", [look], [1, 2, 7, 4], name="z"))
    after = command(before)
    assert operators(after)["TRANSPOSE"] == 1
    (node,) = (node for node in after.graphs[0] if node.op_type == "ATTENTION")
    assert node.inputs[8] is after.graphs[0].inputs[3]
    given = fused_feeds_at(before, 6)
    # NEG comes behind ATTENTION, so both see what it wrote
    assert_turned(before, after, given)


def test_outputs(command: Command) -> None:
    """Outputs that the contract calls keys or values; under their names, with their roles."""
    model = SAMPLES["decoder"]()
    before = formats.loads(formats.dumps(model))
    after = command(model)
    assert command.said.endswith("transposed 4 of 4 key/value tensors to BTNH\n")
    for graph in after.graphs:
        key = graph.outputs[1]
        assert (key.name, list(key.shape), role_of(key)) == ("key_0", [1, 8, 2, 4], Role("key", 0, "BTNH"))
        assert key.producer().op_type == "TRANSPOSE"
    for entry_point in contract_of(after)["signatures"].values():
        assert [e["layout"] for e in (*entry_point["inputs"], *entry_point["outputs"]) if "layout" in e] == [
            "BTNH"
        ] * 2
    given = graphs.feeds(before)
    copy = {name: transposed(array) if array.ndim == 4 else array for name, array in given.items()}
    expected, actual = graphs.run(before, given), graphs.run(after, copy)
    np.testing.assert_array_equal(actual["logits"], expected["logits"])
    np.testing.assert_array_equal(transposed(actual["key_0"]), expected["key_0"])


@pytest.mark.parametrize("model", ["decoder", "scattered", "fused"])
def test_there_and_back(command: Command, model: str) -> None:
    before = {
        "decoder": SAMPLES["decoder"],
        "scattered": lambda: build(Scattered(join="slice")),
        "fused": lambda: attention(Form(layout="BNTH")),
    }[model]()
    given = {
        "decoder": lambda: graphs.feeds(before),
        "scattered": lambda: feeds_at(Scattered(join="slice"), 2),
        "fused": lambda: fused_feeds_at(before, 2),
    }[model]
    after = command(command(before), "--to", "BNTH")
    assert contract_of(after) == contract_of(before)
    assert [list(v.shape) for v in after.graphs[0].inputs] == [list(v.shape) for v in before.graphs[0].inputs]
    expected, actual = (reference.run_graph(model_.graphs[0], given()) for model_ in (before, after))
    for name in expected:
        assert_close(actual[name], expected[name])


def test_what_has_the_layout_already_stays(command: Command) -> None:
    before = attention(Form(layout="BTNH"))
    after = command(before)
    assert command.said.endswith("transposed 0 of 2 key/value tensors to BTNH\n")
    assert [list(v.shape) for v in after.graphs[0].inputs] == [list(v.shape) for v in before.graphs[0].inputs]


def test_grouped_heads_are_those_of_the_keys(command: Command) -> None:
    """Eight query heads, two of keys: it is the two that change places with the rows."""
    after = command(attention(Form(K=2, G=4, layout="BNTH", has_roles=False)))
    assert list(after.graphs[0].inputs[3].shape) == [1, 7, 2, 4]


def test_an_open_shape_turns_too(command: Command) -> None:
    model = attention(Form(layout="BNTH"))
    for cache in model.graphs[0].inputs[3:5]:
        cache.meta["fields"] = {"shapeSignature": np.int32([1, 2, -1, 4])}
    after = command(model)
    assert list(after.graphs[0].inputs[3].meta["fields"]["shapeSignature"]) == [1, -1, 2, 4]


def test_branches_keep_what_the_operator_gives_them(command: Command) -> None:
    """Their ends are not the model's: IF passes what it always passed."""
    model = attention(Form(layout="BNTH"))
    (inner,) = model.graphs
    main = Graph("main")
    condition = main.input("condition", [1], BOOL)
    ends = [main.input(v.name or "", v.shape.numpy(), v.dtype or FLOAT) for v in inner.inputs]  # type: ignore[union-attr]
    for outer, value in zip(ends, inner.inputs, strict=True):
        if role_of(value) is not None:
            outer.meta["role"] = value.meta.pop("role")
    result = main.value("result", [1, 1, 5])
    branches = [ir.AttrGraph(f"{name}SubgraphIndex", inner) for name in ("then", "else")]
    main.node("IF", [condition, *ends], [result], branches)
    main.output(result)
    model = main.model()
    model.graphs.append(inner)
    after = command(model)
    assert [list(v.shape) for v in after.graphs[1].inputs[3:5]] == [[1, 2, 7, 4]] * 2
    assert [list(v.shape) for v in after.graphs[0].inputs[4:6]] == [[1, 7, 2, 4]] * 2
    assert operators(after)["TRANSPOSE"] == 2


def quantize(value: ir.Value, scales: list[float]) -> None:
    value.type = ir.TensorType(ir.DataType.INT8)
    value.meta["fields"] = {"quantization": graphs.per_channel(scales)}


def test_a_quantized_cache(command: Command) -> None:
    graph = Graph("decode")
    cache = graph.input("past_key_0", [1, 2, 3, 4])
    cache.meta["role"] = Role("key_cache", 0, "BNTH")
    quantize(cache, [0.5])
    graph.output(graph.op("DEQUANTIZE", [cache], [1, 2, 3, 4], FLOAT, "y"))
    after = command(graph.model())
    numbers = np.arange(24, dtype=np.int8).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(graphs.run(after, {"past_key_0": transposed(numbers)})["y"], numbers / 2)
    quantize(cache, [0.5, 0.25])
    code, said = command.refusal(graph.model())
    assert (code, said) == (1, "the cache past_key_0 is quantized by channel")


def test_two_layouts_of_one_attention_are_a_contradiction(command: Command) -> None:
    model = attention(Form(layout="BNTH"))
    model.graphs[0].inputs[4].meta["role"] = Role("value_cache", 0, "BTNH")
    code, said = command.refusal(model)
    assert code == 1
    assert said.endswith("its o2o.contract declares BNTH and BTNH")


def test_a_layout_that_does_not_fit_the_shape(command: Command) -> None:
    model = attention(Form(layout="BNTH"))
    for cache in model.graphs[0].inputs[3:5]:
        cache.meta["role"] = Role("key_cache", 0, "BTNH")
    code, said = command.refusal(model, "--to", "BNTH")
    assert code == 1
    assert said.endswith("[1, 2, 7, 4] of 2 heads is ambiguous: its o2o.contract declares BTNH")


def test_a_cache_that_is_an_output_too_is_transposed_as_both(command: Command) -> None:
    """TICO's adapter returns the caches that ATTENTION updates in place."""
    model = attention(Form(layout="BNTH"))
    graph = model.graphs[0]
    graph.outputs.append(graph.inputs[3])
    before = shape_of(graph.inputs[3])
    (after,) = command(model).graphs
    assert after.inputs[3] is after.outputs[-1]
    assert shape_of(after.inputs[3]) == tuple(before[axis] for axis in (0, 2, 1, 3))


def test_a_cache_that_is_computed_is_refused(command: Command) -> None:
    model = attention(Form(layout="BNTH"))
    graph = Graph("decode")
    graph.ir = model.graphs[0]
    (node,) = (node for node in graph.ir if node.op_type == "ATTENTION")
    node.replace_input_with(9, graph.op("NEG", [graph.ir.inputs[4]], [1, 2, 7, 4]))
    code, said = command.refusal(model)
    assert code == 1
    assert said == "the cache neg of ATTENTION is not an input"


def test_three_axes_are_refused(command: Command) -> None:
    graph = Graph("decode")
    cache = graph.input("past_key_0", [2, 3, 4])
    cache.meta["role"] = Role("key_cache", 0, "BNTH")
    graph.output(graph.op("NEG", [cache], [2, 3, 4]))
    code, said = command.refusal(graph.model())
    assert (code, said) == (1, "the cache past_key_0 has shape [2, 3, 4], not four axes")


def test_a_model_without_caches_is_refused(command: Command) -> None:
    code, said = command.refusal(linear())
    assert code == 2
    assert "no input or output is a KV cache" in said
    assert command.refusal(linear(), "--to", "BHTN")[0] == 2


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("form", ["concat", "static"])
def test_exported_graphs(exported_model, form: str, fuse: bool) -> None:
    before, after = (formats.load(exported_model("grouped", form)) for _ in range(2))
    if fuse:
        FuseAttention().apply(after, argparse.Namespace(explain=False, assume_full_cache=None, core=False))
        FuseAttention().apply(before, argparse.Namespace(explain=False, assume_full_cache=None, core=False))
    TransposeIoKvcache().apply(after, argparse.Namespace(to="BTNH"))
    after = formats.loads(formats.dumps(after))
    contract = contract_of(after)["signatures"]["decode"]
    layouts = [entry["layout"] for entry in (*contract["inputs"], *contract["outputs"]) if "layout" in entry]
    assert layouts == ["BTNH"] * (6 if form == "concat" or fuse else 12)
    assert_turned(before, after, exported_feeds(before, 17))


def test_a_cache_that_is_written_and_given_out_is_written_turned(command: Command) -> None:
    """No whole cache is moved between what goes in and what comes out; there was a TRANSPOSE of the rows."""
    before = language_model()
    after = command(language_model())
    for graph in after.graphs:
        for cache, updated in zip(graph.inputs[2:], graph.outputs[1:], strict=True):
            node = updated.producer()
            assert node is not None
            assert (node.op_type, node.inputs[0]) == ("DYNAMIC_UPDATE_SLICE", cache)
            assert list(updated.shape) == [1, 8, 2, 3]
            assert node.inputs[1].producer().op_type == "RESHAPE", "rows come as they were before"
        assert operators(Model("circle", [graph]))["GATHER"] == 3, "of one start for all caches"
    given = {"input_ids": np.int64([[3, 1, 4, 1]]), "cache_position": np.int64([2])}
    given |= {f"past_{kind}_0": graphs.weights(1, 2, 8, 3, seed=9) for kind in ("key", "value")}
    copy = {name: transposed(array) if array.ndim == 4 else array for name, array in given.items()}
    expected, actual = graphs.run(before, given), graphs.run(after, copy)
    assert_close(actual["logits"], expected["logits"])
    for kind in ("key", "value"):
        np.testing.assert_array_equal(transposed(actual[f"present_{kind}_0"]), expected[f"present_{kind}_0"])


def test_a_cache_that_another_reads_before_it_is_written(command: Command) -> None:
    model = language_model()
    graph = Graph("prefill_4")
    graph.ir = model.graphs[0]
    look = graph.op("NEG", [graph.ir.inputs[2]], [1, 2, 8, 3], name="look")
    graph.output(look)
    given = {"input_ids": np.int64([[3, 1, 4, 1]]), "cache_position": np.int64([2])}
    given |= {f"past_{kind}_0": graphs.weights(1, 2, 8, 3, seed=9) for kind in ("key", "value")}
    expected = graphs.run(formats.loads(formats.dumps(model)), given)
    after = command(model)
    copy = {name: transposed(array) if array.ndim == 4 else array for name, array in given.items()}
    actual = graphs.run(after, copy)
    np.testing.assert_array_equal(actual["look"], expected["look"])
    np.testing.assert_array_equal(transposed(actual["present_key_0"]), expected["present_key_0"])
