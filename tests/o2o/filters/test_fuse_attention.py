"""fuse.attention: every form of attention becomes ATTENTION and means the same; nothing else does."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from o2o import formats
from o2o.contract import Role, contract_of
from o2o.filters.fuse_attention import FuseAttention
from o2o.filters.transpose_io_kvcache import TransposeIoKvcache
from o2o.lower.litert import lower_to_litert
from o2o.model import Model, shape_of
from o2o.operators import reference
from o2o.operators.core_attention import CoreAttention, is_core_attention
from o2o.rewriting.dead_code_elimination import remove_dead_constants
from tests.checkpoints import write_checkpoint
from tests.o2o import graphs
from tests.o2o.attention_graphs import BROKEN, D, Form, build, feeds_at, forms
from tests.o2o.graphs import exported_feeds, operators
from tests.tolerances import assert_close


def fuse(model: Model, full_cache: str | None = None) -> list[str]:
    """Run the filter and return its messages."""
    filter_ = FuseAttention()
    filter_.apply(model, argparse.Namespace(explain=True, assume_full_cache=full_cache, core=False))
    return filter_.messages


def reread(model: Model) -> Model:
    return formats.loads(formats.dumps(model))


def positions(form: Form) -> list[int]:
    if form.join == "none":
        return [0, 3] if form.rotate else [0]
    last = form.past - form.T
    return sorted({0, min(1, last), last})


@settings(max_examples=60, deadline=None)
@given(form=forms())
def test_every_form_is_fused_and_means_the_same(form: Form) -> None:
    before, after = build(form), build(form)
    said = fuse(after)
    assert said[0] == "main: fused 1 attention block", said
    assert operators(after)["ATTENTION"] == 1
    assert operators(after)["SOFTMAX"] == 0
    after = reread(after)
    for position in positions(form):
        expected = reference.run_graph(before.graphs[0], feeds_at(form, position))
        feeds = feeds_at(form, position)
        actual = reference.run_graph(after.graphs[0], feeds)
        assert actual.keys() == {"y"} if form.contract_layout else expected.keys()
        for name in expected:
            now = actual[name] if name in actual else feeds[name.replace("present", "past")]
            assert_close(now, expected[name])


def test_the_core_alone_leaves_projections_and_caches() -> None:
    form = Form()
    before, after = build(form), build(form)
    filter_ = FuseAttention()
    filter_.apply(after, argparse.Namespace(explain=False, assume_full_cache=None, core=True))
    assert filter_.messages == ["main: fused 1 attention block"]
    assert operators(after)["o2o.attention"] == 1
    assert operators(after)["ATTENTION"] == 0
    assert operators(after)["FULLY_CONNECTED"] == operators(before)["FULLY_CONNECTED"]
    assert [value.name for value in after.graphs[0].outputs] == [v.name for v in before.graphs[0].outputs]
    feeds = feeds_at(form, 0)
    expected = reference.run_graph(before.graphs[0], feeds)
    for name, numbers in reference.run_graph(after.graphs[0], feeds).items():
        assert_close(numbers, expected[name])


@settings(max_examples=25, deadline=None)
@given(form=forms())
def test_what_is_fused_lowers_to_the_same(form: Form) -> None:
    """On LiteRT: the decomposed block against ATTENTION lowered to builtins."""
    before, after = build(form), build(form)
    fuse(after)
    after = lower_to_litert(reread(after))
    for position in positions(form):
        feeds = feeds_at(form, position)
        expected, actual = graphs.run(before, feeds), graphs.run(after, feeds)
        for name in expected:
            assert_close(actual[name], expected[name])


@pytest.mark.parametrize("T", [1, 3])
def test_the_cache_is_written_in_place_at_the_position(T: int) -> None:
    form = Form(T=T, join="concat", past=7)
    model = build(form)
    joined = [
        node
        for node in model.graphs[0]
        if node.op_type == "CONCATENATION" and len(node.outputs[0].shape) == 4
    ]
    caches = [node.outputs[0] for node in joined if node.outputs[0].shape[2] == form.past + T]
    feeds = feeds_at(form, 2)
    known = {value: feeds[value.name] for value in model.graphs[0].inputs}
    new = [reference.evaluate(value, known)[:, :, form.past :] for value in caches]
    fuse(model)
    reference.run_graph(model.graphs[0], feeds)
    for name, rows in zip(("past_key_0", "past_value_0"), new, strict=True):
        assert_close(feeds[name][:, :, 2 : 2 + T], rows)
        assert (feeds[name][:, :, 2 + T :] == 1000).all()


NEAR_MISSES = {
    "value cache elsewhere": Form(join="slice"),
    "written one row on": Form(T=3, join="slice", mask_form="rows"),
    "written at row 0": Form(T=3, join="slice", mask_form="rows"),
    "written at the last query": Form(T=3, join="slice", mask_form="rows"),
    "concatenated in front": Form(join="concat"),
    "scaled mask": Form(T=3),
    "softmax axis": Form(T=3, mask="none", repeat="broadcast"),
    "cache of its own": Form(join="concat"),
    "cache by column": Form(join="concat"),
    "layouts differ": Form(join="concat"),
    "one cache for both": Form(join="concat"),
    "cache read elsewhere": Form(join="concat"),
    "cache passed through": Form(join="concat"),
    "updated cache is an output": Form(join="concat"),
    "cached values scaled": Form(join="concat"),
    "scores are an output": Form(join="concat"),
    "position among others": Form(join="slice"),
    "one join for both": Form(join="slice", rotate=False),
    "contract differs": Form(join="slice", contract_layout="BTNH"),
    "ambiguous cache": Form(join="slice", K=5, past=5, contract_layout=""),
    "neither cache nor rotation": Form(T=3, rotate=False),
}


ALONE = {"weights are an output", "softmax axis", "mask too large"}  # no attention that an operator computes


@pytest.mark.parametrize("broken", BROKEN)
def test_a_near_miss_is_explained_and_means_the_same(broken: str) -> None:
    """Left alone, or raised to its core, which says what it is: never to ATTENTION."""
    form = NEAR_MISSES.get(broken, Form(T=3))
    form = Form(**{**vars(form), "broken": broken})
    model, same = build(form), build(form)
    before = operators(model)
    messages = fuse(model)
    left = "alone" if broken in ALONE else "as o2o.attention"
    assert messages[0] == f"main: fused 0 attention blocks, left 1 candidate {left}"
    assert BROKEN[broken] in messages[1]
    if broken in ALONE:
        assert operators(model) == before
        return
    assert operators(model)["o2o.attention"] == 1
    assert operators(model)["SOFTMAX"] == operators(model)["ATTENTION"] == 0
    if broken in ("quantized weights", "shuffled weights", "cache of its own", "cache passed through"):
        return  # the reference does not compute it
    assert_same(same, reread(model), form)


TRUE_MEANINGS = {
    "mask by head": Form(T=3),  # the same for each head: nothing is hidden
    "two masks": Form(T=3),
    "scaled mask": Form(T=3),  # what is hidden stays hidden
}


@pytest.mark.parametrize("broken", TRUE_MEANINGS)
def test_an_unusual_mask_is_taken_for_what_it_means(broken: str) -> None:
    form = Form(**{**vars(TRUE_MEANINGS[broken]), "broken": broken})
    before, after = build(form), build(form)
    assert fuse(after) == ["main: fused 1 attention block"]
    assert_same(before, reread(after), form)


def assert_same(before: Model, after: Model, form: Form) -> None:
    for position in positions(form):
        feeds = feeds_at(form, position)
        for value in before.graphs[0].inputs:
            array = feeds.get(value.name, np.ones(shape_of(value), value.dtype.numpy()))
            feeds[value.name] = array.reshape(shape_of(value))
        expected = reference.run_graph(before.graphs[0], {k: v.copy() for k, v in feeds.items()})
        actual = reference.run_graph(after.graphs[0], feeds)
        for name in expected:
            assert_close(actual[name], expected[name])


@pytest.mark.parametrize("broken", ["mask one on", "mask one off", "mask relative"])
def test_a_mask_of_a_written_cache_that_is_not_causal_stays(broken: str) -> None:
    form = Form(T=3, join="slice", past=7, mask_form="rows", returns_caches=True, broken=broken)
    before, after = build(form), build(form)
    assert fuse(after) == ["main: fused 1 attention block"]
    assert next(node for node in after.graphs[0] if node.op_type == "ATTENTION").inputs[7] is not None
    for position in positions(form):
        feeds = feeds_at(form, position)
        feeds = {name: np.where(array == 1000, array.dtype.type(2), array) for name, array in feeds.items()}
        expected = reference.run_graph(
            before.graphs[0], {name: array.copy() for name, array in feeds.items()}
        )
        assert_close(reference.run_graph(after.graphs[0], feeds)["y"], expected["y"])
        assert_close(feeds["past_key_0"], expected["present_key_0"])


def test_a_causal_mask_of_a_written_cache_goes() -> None:
    for mask_form in ("slots", "rows", "table"):
        model = build(Form(T=3, join="slice", past=7, mask_form=mask_form))
        fuse(model)
        assert next(node for node in model.graphs[0] if node.op_type == "ATTENTION").inputs[7] is None


def test_outputs_that_are_something_else_stay() -> None:
    """The cache of another layer, of another layout, or turned otherwise than the contract says."""
    form = Form(T=2, join="slice", transposed=True, returns_caches=True)
    for role in (Role("key", 1, "BNTH"), Role("key", 0, "BTNH"), Role("value", 0, "BNTH"), None):
        before, after = build(form), build(form)
        for model in (before, after):
            model.graphs[0].outputs[1].meta["role"] = role
        fuse(after)
        feeds = feeds_at(form, 1)
        actual = reference.run_graph(reread(after).graphs[0], feeds)
        assert actual.keys() == {"y", "present_key_0"}
        expected = reference.run_graph(before.graphs[0], feeds_at(form, 1))
        assert_close(actual["present_key_0"], expected["present_key_0"])
    model = build(form)
    model.graphs[0].outputs[1] = model.graphs[0].outputs[1].producer().inputs[0]  # as it is joined, BTNH
    model.graphs[0].outputs[1].meta["role"] = Role("key", 0, "BNTH")
    fuse(model)
    assert len(model.graphs[0].outputs) == 2


def test_one_wrong_entry_of_a_mask_is_seen() -> None:
    """A mask that is causal but for one entry stays an operand; without a cache that is always right."""
    form = Form(T=4)
    model = build(form)
    mask = next(value for value in model.graphs[0].initializers.values() if value.name == "mask")
    numbers = mask.const_value.numpy().copy()
    numbers[0, 0, 1, 2] = 0
    mask.const_value = type(mask.const_value)(numbers, name="mask")
    expected = reference.run_graph(model.graphs[0], feeds_at(form, 0))
    fuse(model)
    node = next(node for node in model.graphs[0] if node.op_type == "ATTENTION")
    assert node.inputs[7] is mask
    assert_close(reference.run_graph(model.graphs[0], feeds_at(form, 0))["y"], expected["y"])


def test_a_mask_wrong_at_one_position_keeps_a_concatenated_cache_alone() -> None:
    model = build(Form(join="concat", past=6))
    slots = next(value for value in model.graphs[0].initializers.values() if value.name == "slots")
    numbers = slots.const_value.numpy().copy()
    numbers[..., 4] = 3  # row 4 is seen from position 4 on, instead of 5
    slots.const_value = type(slots.const_value)(numbers, name="slots")
    said = fuse(model)
    assert "the mask is not causal at position 4" in said[1]
    assert operators(model)["ATTENTION"] == 0
    assert operators(model)["o2o.attention"] == 1


def test_a_concatenated_cache_without_mask_needs_a_promise() -> None:
    form = Form(join="concat", mask="none", past=5)
    assert "--assume-full-cache" in fuse(build(form))[1]
    assert "there is no input nowhere" in fuse(build(form), "nowhere")[1]
    assert "depends on x, which is not a position" in fuse(build(form), "x")[1]
    several = build(form)
    others = several.graphs[0].inputs[1]
    others.shape = ir.Shape([4])
    assert "not the position of one token" in fuse(several, "position")[1]
    model = build(form)
    assert fuse(model, "position") == ["main: fused 1 attention block"]
    node = next(node for node in model.graphs[0] if node.op_type == "ATTENTION")
    assert node.inputs[10] is not None
    assert node.inputs[10].name == "position"


def two_layers(form: Form, shared: bool) -> Model:
    """The block twice, the second on the first one's result; on caches of its own or on the first one's."""
    model = build(form)
    graph = model.graphs[0]
    (y,) = graph.outputs
    now: dict[ir.Value | None, ir.Value | None] = {graph.inputs[0]: y}
    for value in list(graph.inputs):
        if (value.name or "").startswith("past_") and not shared:
            now[value] = ir.Value(name=f"{value.name}_1", shape=value.shape, type=value.type)
            graph.inputs.append(now[value])
    for node in list(graph):
        outputs = [ir.Value(name=f"{v.name}_1", shape=v.shape, type=v.type) for v in node.outputs]
        inputs = [now.get(value, value) for value in node.inputs]
        graph.append(ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), outputs=outputs))
        now.update(zip(node.outputs, outputs, strict=True))
    graph.outputs.append(now[y])
    model.signatures.clear()
    return model


@pytest.mark.parametrize("join", ["concat", "slice"])
def test_two_layers(join: str) -> None:
    form = Form(T=2, join=join)
    before, after = two_layers(form, shared=False), two_layers(form, shared=False)
    assert fuse(after) == ["main: fused 2 attention blocks"]
    for position in positions(form):
        feeds = feeds_at(form, position)
        others = feeds_at(form, position, seed=1)
        feeds |= {f"{name}_1": array for name, array in others.items() if "past" in name}
        expected = reference.run_graph(before.graphs[0], feeds)
        actual = reference.run_graph(reread(after).graphs[0], feeds)
        for name in expected:
            assert_close(actual[name], expected[name])


@pytest.mark.parametrize("join", ["concat", "slice"])
def test_two_layers_on_one_cache_are_left_alone(join: str) -> None:
    """Written in place, each would read the rows of the other."""
    model = two_layers(Form(T=2, join=join), shared=True)
    said = fuse(model)
    assert said[0] == "main: fused 0 attention blocks, left 2 candidates as o2o.attention"
    assert all("which ATTENTION writes in place, is used elsewhere too" in line for line in said[1:3])


def test_several_tokens_that_all_see_each_other_are_not_promised_away() -> None:
    """--assume-full-cache says where the cache ends, not that the new tokens are causal among themselves."""
    model = build(Form(T=3, join="concat", mask="none"))
    assert "left 1 candidate as o2o.attention" in fuse(model, "position")[0]


def test_a_written_cache_may_be_given_out() -> None:
    """DYNAMIC_UPDATE_SLICE of a cache that ATTENTION has written already gives the same cache."""
    form = Form(T=2, join="slice", broken="updated cache is an output")
    before, after = build(form), build(form)
    assert fuse(after) == ["main: fused 1 attention block"]
    for position in positions(form):
        expected = reference.run_graph(before.graphs[0], feeds_at(form, position))
        actual = reference.run_graph(reread(after).graphs[0], feeds_at(form, position))
        assert len(actual) == 3
        for name in expected:
            assert_close(actual[name], expected[name])


def test_caches_of_a_graph_that_an_operator_runs_are_left_alone() -> None:
    """A branch gets copies: what ATTENTION writes into them would be lost, or not, as the runtime likes."""
    model = build(Form(join="slice"))
    (inner,) = model.graphs
    main = graphs.Graph("main")
    condition = main.input("condition", [1], graphs.BOOL)
    ends = [main.input(v.name, v.shape.numpy(), v.dtype) for v in inner.inputs]
    result = main.value("result", [1, 1, D])
    branches = [ir.AttrGraph(f"{name}SubgraphIndex", inner) for name in ("then", "else")]
    main.node("IF", [condition, *ends], [result], branches)
    main.output(result)
    model = main.model()
    model.graphs.append(inner)
    assert "belongs to a graph that an operator runs" in fuse(model)[2]
    assert operators(model)["ATTENTION"] == 0


@pytest.mark.parametrize("form", ["prefill", "concat", "static", "prefill_8", "prefill_32"])
@pytest.mark.parametrize("shape", ["demo", "grouped"])
def test_exported_graphs_fuse_in_every_layer(exported_model, shape: str, form: str) -> None:
    before, after = (formats.load(exported_model(shape, form)) for _ in range(2))
    layers = operators(before)["SOFTMAX"]
    (label,) = [signature.name for signature in before.signatures]
    assert fuse(after) == [f"{label}: fused {layers} attention blocks"]
    assert operators(after)["ATTENTION"] == layers
    for operator in ("SOFTMAX", "BATCH_MATMUL", "DYNAMIC_UPDATE_SLICE", "TRANSPOSE", "BROADCAST_TO"):
        assert operators(after)[operator] == 0 or form == "prefill"
    contract = contract_of(before)
    if form != "prefill":  # what came out is what now lies in the inputs
        contract["signatures"][label]["outputs"] = contract["signatures"][label]["outputs"][:1]
    assert contract_of(after) == contract
    after = reread(after)
    last = {"concat": 29, "static": 31, "prefill_8": 24}.get(form, 0)
    for position in sorted({0, min(1, last), min(17, last), last}):
        feeds = exported_feeds(before, position)
        expected = reference.run_graph(before.graphs[0], {k: v.copy() for k, v in feeds.items()})
        actual = reference.run_graph(after.graphs[0], feeds)
        for name in expected:
            now = actual[name] if name in actual else feeds[name.replace("present", "past")]
            assert_close(now, expected[name], err_msg=name)


@pytest.mark.parametrize("form", ["concat", "static", "prefill_8"])
def test_caches_that_were_turned_before_fusing_are_written_in_place_too(exported_model, form: str) -> None:
    """fuse.attention after transpose.io.kvcache is as good as before it."""
    one, other = (formats.load(exported_model("grouped", form)) for _ in range(2))
    turn = argparse.Namespace(to="BTNH")
    fuse(one)
    TransposeIoKvcache().apply(one, turn)
    TransposeIoKvcache().apply(other, turn)
    assert "fused 3 attention blocks" in fuse(other)[0]
    for model in (one, other):
        remove_dead_constants(model.graphs[0])
    assert contract_of(one) == contract_of(other)
    assert operators(one) == operators(other)
    assert formats.dumps(one) == formats.dumps(other)


def test_rotations_that_are_fused_already_are_known(exported_model, tmp_path: Path) -> None:
    from o2o.filters.fuse_rope import FuseRope

    model = formats.load(exported_model("grouped", "concat"))
    FuseRope().apply(model, argparse.Namespace(explain=False))
    assert operators(model)["ROPE"] == 2 * operators(model)["SOFTMAX"]
    assert fuse(model) == ["decode: fused 3 attention blocks"]
    assert operators(model)["ROPE"] == 0


FAMILIES = {  # whose attention transformers' attention interface does not compute
    "gpt_neo": {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 32,
        "window_size": 16,
    },
    "mpt": {"vocab_size": 61, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 32},
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_other_families_are_raised_to_the_core(tmp_path: Path, model_type: str) -> None:
    """Masks that select, masks among constants, ALiBi of keys: no mask operand is left."""
    from export import build_graph

    write_checkpoint(tmp_path, model_type=model_type, **FAMILIES[model_type])
    data = formats.dumps(build_graph.decode(tmp_path, 16, "static"))
    before, after = formats.loads(data), formats.loads(data)
    assert fuse(after)[0] == "decode: fused 0 attention blocks, left 2 candidates as o2o.attention"
    cores = [CoreAttention.of(node) for node in after.graphs[0] if is_core_attention(node)]
    assert [core.mask for core in cores] == [None, None]
    assert {core.position.name for core in cores} == {"cache_position"}
    assert all((core.slopes is None) == (model_type == "gpt_neo") for core in cores)
    after = reread(after)
    for position in (0, 7, 15):
        feeds = exported_feeds(before, position)
        feeds["input_ids"] = feeds["input_ids"] % 61
        expected = reference.run_graph(before.graphs[0], feeds)
        actual = reference.run_graph(after.graphs[0], feeds)
        for name in expected:
            assert_close(actual[name], expected[name], err_msg=name)
