"""Lowering: what Circle's own operators mean by the reference is what LiteRT computes afterwards."""

from __future__ import annotations

import argparse
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from o2o import formats
from o2o.contract import Role, contract_of, role_of
from o2o.errors import ModelError
from o2o.filters.fuse_attention import FuseAttention
from o2o.filters.fuse_rms_norm import FuseRmsNorm
from o2o.filters.merge_circles import MergeCircles
from o2o.filters.reshape_io import ReshapeIo
from o2o.filters.transpose_io_kvcache import TransposeIoKvcache
from o2o.lower.litert import lower_to_litert
from o2o.lower.litert.attention import FlashBlocks
from o2o.model import CUSTOM_DOMAIN, Model
from o2o.operators import reference
from o2o.operators.core_attention import FlashBlockSizes
from tests.o2o import graphs
from tests.o2o.fused_graphs import D, Form, attention, feeds_at
from tests.o2o.graphs import BOOL, FLOAT, INT32, INT64, Graph, exported_feeds, feeds, operators, sign, weights
from tests.tolerances import assert_close


def assert_lowers(form: Form, flash: FlashBlocks = None) -> None:
    before, after = attention(form), formats.loads(formats.dumps(lower_to_litert(attention(form), flash)))
    assert after.format == "tflite"
    start = form.pos is None or not form.layout
    for position in {0} if start else {0, 1, form.S - form.T}:
        given_ = feeds_at(before, position)
        found = graphs.run(after, given_)
        caches = {name: array.copy() for name, array in given_.items() if name.startswith("past_")}
        expected = reference.run_graph(before.graphs[0], {**given_, **caches})  # which writes into the caches
        assert_close(found["y"], expected["y"])
        for name, cache in caches.items():
            assert_close(found[name.replace("past", "present")], cache)


@st.composite
def forms(draw: st.DrawFn) -> Form:
    layout = draw(st.sampled_from(["", "BNTH", "BTNH"]))
    T, G = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    S = draw(st.integers(5, 7)) if layout else T
    return Form(
        *(T, draw(st.integers(1, 3)), G, draw(st.sampled_from([2, 4]))),
        S=S,
        layout=layout,
        rotate=draw(st.booleans()) if layout else True,
        mask=draw(st.sampled_from([None, (T, S), (1, 1, T, S), (1, 1, 1, S), (S,), (1, 1, T, 1)])),
        pos=draw(st.sampled_from([(1,), (T,), (), None])),
        pos_dtype=draw(st.sampled_from([INT32, INT64])),
    )


@settings(max_examples=60, deadline=None)
@given(form=forms())
def test_attention(form: Form) -> None:
    assert_lowers(form)


@settings(max_examples=30, deadline=None)
@given(form=forms(), blocks=st.tuples(st.integers(1, 3), st.integers(1, 6)))
def test_attention_in_blocks(form: Form, blocks: tuple[int, int]) -> None:
    assert_lowers(form, FlashBlockSizes(*blocks))


def test_attention_in_blocks_where_it_pays() -> None:
    """Several queries that look into a long cache, and no mask that says how far."""

    def loops(T: int, S: int, **other: Any) -> bool:
        return "WHILE" in operators(lower_to_litert(attention(Form(T, 2, 2, 4, S=S, layout="BNTH", **other))))

    assert loops(2, 256)
    assert not loops(2, 255)
    assert loops(65, 512)
    assert not loops(65, 511)
    assert not loops(1, 512)
    assert not loops(2, 256, mask=(2, 256))


@pytest.mark.parametrize("layout", ["BNTH", "BTNH"])
@pytest.mark.parametrize("T", [1, 3])
def test_as_many_heads_as_rows(layout: str, T: int) -> None:
    assert_lowers(Form(T=T, K=5, S=5, layout=layout))


def test_without_a_contract_equal_heads_and_rows_are_refused() -> None:
    with pytest.raises(ModelError, match="of 5 heads is ambiguous"):
        lower_to_litert(attention(Form(K=5, S=5, layout="BNTH", has_roles=False)))


def test_no_key_is_repeated() -> None:
    """The query heads of a group are rows of one product, so a cache is read once and copied never."""
    found = operators(lower_to_litert(attention(Form(K=2, G=4, layout="BNTH"))))
    assert found["BROADCAST_TO"] == found["TILE"] == found["GATHER"] == 0
    assert found["TRANSPOSE"] == 0
    assert found["BATCH_MATMUL"] == 2


def test_caches_come_out_with_roles() -> None:
    model = formats.loads(formats.dumps(lower_to_litert(attention(Form(layout="BTNH")))))
    (signature,) = model.signatures
    assert list(signature.outputs) == ["y", "present_key_0", "present_value_0"]
    assert [role_of(value) for value in model.graphs[0].outputs] == [
        None,
        Role("key", 0, "BTNH"),
        Role("value", 0, "BTNH"),
    ]
    entries = contract_of(model)["signatures"]["decode"]["outputs"]
    assert entries[1]["shape"] == [1, 7, 2, 4]


def test_caches_without_roles_get_none() -> None:
    """A contract of two tensors would be worse than none."""
    model = lower_to_litert(attention(Form(layout="BNTH", has_roles=False)))
    assert contract_of(model)["signatures"] == {}
    assert [value.name for value in model.graphs[0].outputs] == ["y", "present_key_0", "present_value_0"]


def test_a_cache_comes_out_under_a_name_of_its_own() -> None:
    """Neither tensors nor the names in signatures may collide."""
    model = attention(Form(layout="BNTH"))
    graph = model.graphs[0]
    graph.outputs[0].name = "present_key_0"
    model.signatures[0].outputs = {"present_value_0": graph.outputs[0]}
    model = formats.loads(formats.dumps(lower_to_litert(formats.loads(formats.dumps(model)))))
    assert [value.name for value in model.graphs[0].outputs] == [
        "present_key_0",
        "present_key_0_1",
        "present_value_0_1",
    ]
    (signature,) = model.signatures
    assert {name: value.name for name, value in signature.outputs.items()} == {
        "present_value_0": "present_key_0",
        "present_key_0_1": "present_key_0_1",
        "present_value_0_1": "present_value_0_1",
    }


def test_caches_of_any_name() -> None:
    model = attention(Form(layout="BNTH"))
    model.graphs[0].inputs[3].name = "k"
    lower_to_litert(model)
    assert [value.name for value in model.graphs[0].outputs] == ["y", "k_out", "present_value_0"]


def test_every_signature_of_the_graph_gives_them_out() -> None:
    model = attention(Form(layout="BNTH"))
    sign(model, model.graphs[0], "again")
    lower_to_litert(model)
    for signature in model.signatures:
        assert list(signature.outputs) == ["y", "present_key_0", "present_value_0"]


def test_a_cache_that_is_given_out_already_is_given_out_once() -> None:
    """As the static form of decode does: its DYNAMIC_UPDATE_SLICE would be a second one, of a copy."""
    model = attention(Form(layout="BNTH"))
    graph = Graph("decode")
    graph.ir = model.graphs[0]
    for kind in ("key", "value"):
        (cache,) = (value for value in graph.ir.inputs if value.name == f"past_{kind}_0")
        start = graph.constant("start", np.int32([0, 0, 3, 0]))
        row = graph.constant("row", weights(1, 2, 1, 4))
        updated = graph.op(
            "DYNAMIC_UPDATE_SLICE", [cache, row, start], [1, 2, 7, 4], name=f"present_{kind}_0"
        )
        updated.meta["role"] = Role(kind, 0, "BNTH")  # type: ignore[arg-type]
        graph.output(updated)
        model.signatures[0].outputs[f"out_{kind}"] = updated
    lower_to_litert(model)
    assert operators(model)["DYNAMIC_UPDATE_SLICE"] == 2
    assert [value.name for value in graph.ir.outputs] == ["y", "present_key_0", "present_value_0"]
    assert list(model.signatures[0].outputs) == ["y", "out_key", "out_value"]


def test_new_rows_that_are_given_out_are_no_updated_cache() -> None:
    """A graph may give its new keys out, [1, K, T, H]: the cache itself comes out besides."""
    model = attention(Form(layout="BNTH"))
    graph = Graph("decode")
    graph.ir = model.graphs[0]
    rows = graph.op("NEG", [graph.constant("rows", weights(1, 2, 1, 4))], [1, 2, 1, 4], name="new_key_0")
    rows.meta["role"] = Role("key", 0, "BNTH")
    graph.output(rows)
    lower_to_litert(model)
    names = [value.name for value in graph.ir.outputs]
    assert names == ["y", "new_key_0", "present_key_0", "present_value_0"]


def test_an_attention_whose_result_is_dead_still_fills_its_caches() -> None:
    model = attention(Form(layout="BNTH"))
    graph = model.graphs[0]
    x = graph.inputs[0]
    graph.outputs[0] = x
    model.signatures[0].outputs = {"x": x}
    given_ = feeds_at(model, 2)
    expected = {name: array.copy() for name, array in given_.items()}
    reference.run_graph(graph, expected)
    found = graphs.run(lower_to_litert(model), given_)
    for kind in ("key", "value"):
        assert_close(found[f"present_{kind}_0"], expected[f"past_{kind}_0"])
    assert operators(model)["SOFTMAX"] == 0, "its result has no user"


@pytest.mark.parametrize("x", [(6,), (2, 6), (1, 3, 6), (2, 1, 3, 6)])
def test_rms_norm(x: tuple[int, ...]) -> None:
    def build() -> Model:
        graph = Graph("main")
        weight = graph.constant("weight", weights(6))
        graph.output(graph.op("RMS_NORM", [graph.input("x", x), weight], x, name="y", epsilon=0.5))
        return graph.model()

    given_ = feeds(build())
    expected = reference.run_graph(build().graphs[0], given_)["y"]
    assert_close(graphs.run(lower_to_litert(build()), given_)["y"], expected)


@pytest.mark.parametrize("table", [(1, 1, 5, 4), (1, 1, 1, 4), (2, 3, 5, 4)])
def test_rope(table: tuple[int, ...]) -> None:
    def build() -> Model:
        graph = Graph("main")
        operands = [graph.input("x", [2, 3, 5, 4]), graph.input("sin", table), graph.input("cos", table)]
        graph.output(graph.op("ROPE", operands, [2, 3, 5, 4], name="y", mode=0))
        return graph.model()

    given_ = feeds(build())
    expected = reference.run_graph(build().graphs[0], given_)["y"]
    assert_close(graphs.run(lower_to_litert(build()), given_)["y"], expected)


def one_op(op_type: str, count: int, **attributes: int) -> Graph:
    graph = Graph("main")
    operands = [graph.input(f"x{k}", [1, 1, 2, 4]) for k in range(count)]
    graph.output(graph.op(op_type, operands, [1, 1, 2, 4], name="y", **attributes))
    return graph


def test_an_operator_that_is_only_circles_is_named() -> None:
    with pytest.raises(ModelError, match=r"LiteRT has no operator INSTANCE_NORM \(y in main\)"):
        lower_to_litert(one_op("INSTANCE_NORM", 3).model())


def test_neighbors_rotated_are_refused() -> None:
    with pytest.raises(ModelError, match="ROPE y rotates neighbors"):
        lower_to_litert(one_op("ROPE", 3, mode=1).model())


@pytest.mark.parametrize("operator", ["RMS_NORM", "ROPE", "ATTENTION"])
@pytest.mark.parametrize("trouble", ["dtype", "quantized", "dynamic"])
def test_what_would_not_be_computed_alike_is_refused(operator: str, trouble: str) -> None:
    graph = attention(Form()).graphs[0] if operator == "ATTENTION" else one_op(operator, 3).ir
    value = graph.inputs[0]
    if trouble == "dtype":
        value.type = ir.TensorType(ir.DataType.INT8)
    elif trouble == "quantized":
        value.meta["fields"] = {"quantization": graphs.per_channel([0.5])}
    else:
        value.meta["fields"] = {"shapeSignature": np.int32([1, -1, 4])}
    with pytest.raises(ModelError, match=f"{operator} .*: {value.name} (is|has)"):
        lower_to_litert(Model("circle", [graph]))


def test_a_cache_that_is_no_input_is_refused() -> None:
    model = attention(Form(layout="BNTH"))
    (node,) = (node for node in model.graphs[0] if node.op_type == "ATTENTION")
    graph = Graph("decode")
    graph.ir = model.graphs[0]
    cache = node.inputs[8]
    assert cache is not None
    copy = graph.op("NEG", [cache], [1, 2, 7, 4])
    node.replace_input_with(8, copy)
    graph.ir.sort()
    with pytest.raises(ModelError, match="in place, which is not an input of decode"):
        lower_to_litert(model)
    with pytest.raises(reference.NotEvaluable, match="on a computed cache"):
        reference.run_graph(graph.ir, feeds_at(model, 0))


@pytest.mark.parametrize("when", ["before", "behind"])
def test_who_reads_a_cache_sees_what_is_in_it_then(when: str) -> None:
    model = attention(Form(layout="BNTH"))
    graph = Graph("decode")
    graph.ir = model.graphs[0]
    (node,) = (node for node in graph.ir if node.op_type == "ATTENTION")
    looks = [graph.op("NEG", [node.inputs[k]], [1, 2, 7, 4], name=f"look{k}") for k in (8, 9)]
    if when == "before":
        graph.ir.insert_before(node, [look.producer() for look in looks])  # type: ignore[misc]
    graph.output(*looks)
    given_ = feeds_at(model, 3)
    expected = reference.run_graph(graph.ir, {name: array.copy() for name, array in given_.items()})
    found = graphs.run(lower_to_litert(model), given_)
    for name in ("y", "look8", "look9"):
        assert_close(found[name], expected[name])


def test_a_cache_that_two_write_is_refused() -> None:
    """The second would have to update the output of the first."""
    model = attention(Form(layout="BNTH"))
    graph = Graph("decode")
    graph.ir = model.graphs[0]
    (node,) = (node for node in graph.ir if node.op_type == "ATTENTION")
    graph.output(graph.op("ATTENTION", node.inputs, [1, 1, D], name="again"))
    with pytest.raises(ModelError, match="in place, which is not an input"):
        lower_to_litert(model)


def test_an_output_that_is_the_cache_itself_becomes_the_updated_cache() -> None:
    """ATTENTION writes in place, so such an output holds the new rows."""
    model = attention(Form(layout="BNTH"))
    (graph,) = model.graphs
    cache = graph.inputs[3]
    graph.outputs.append(cache)
    lower_to_litert(model)
    update = graph.outputs[1].producer()
    assert update is not None
    assert (update.op_type, update.inputs[0]) == ("DYNAMIC_UPDATE_SLICE", cache)


def test_a_branch_that_writes_caches_is_refused() -> None:
    """Its output would have to come out of the operator that runs it."""
    model = attention(Form(layout="BNTH"))
    (inner,) = model.graphs
    main = Graph("main")
    condition = main.input("condition", [1], BOOL)
    inputs = [main.input(v.name or "", v.shape.numpy(), v.dtype or FLOAT) for v in inner.inputs]  # type: ignore[union-attr]
    result = main.value("result", [1, 1, D])
    branches = [ir.AttrGraph(f"{name}SubgraphIndex", inner) for name in ("then", "else")]
    main.node("IF", [condition, *inputs], [result], branches)
    main.output(result)
    model = main.model()
    model.graphs.append(inner)
    with pytest.raises(ModelError, match="in a subgraph that another operator runs"):
        lower_to_litert(model)


def test_custom_operators_stay() -> None:
    graph = Graph("main")
    x, y = graph.input("x", [2]), graph.value("y", [2])
    graph.node("ROPE", [x], [y], domain=CUSTOM_DOMAIN)
    graph.output(y)
    assert [node.domain for node in lower_to_litert(graph.model()).graphs[0]] == [CUSTOM_DOMAIN]


def test_versions_are_raised_to_what_litert_registers() -> None:
    graph = Graph("main")
    to = graph.constant("to", np.int32([2, 3]))
    y = graph.op("BROADCAST_TO", [graph.input("x", [1, 3]), to], [2, 3], name="y")
    graph.output(graph.op("NEG", [y], [2, 3], name="z", version=2))
    model = formats.loads(formats.dumps(lower_to_litert(graph.model())))
    assert [node.version for node in model.graphs[0]] == [2, 2]


@pytest.mark.parametrize("layout", ["", "BNTH", "BTNH"])
def test_lowering_twice_is_lowering_once(layout: str) -> None:
    once = formats.dumps(lower_to_litert(attention(Form(T=3, layout=layout))))
    assert formats.dumps(lower_to_litert(formats.loads(once))) == once


# --- exported models ------------------------------------------------------------------------------------


def decode_of(exported_model, shape: str, form: str, layout: str) -> Model:
    """Decode as the guide makes it: fused, 32 rows, caches in `layout`."""
    model = formats.load(exported_model(shape, form))
    FuseAttention().apply(model, argparse.Namespace(explain=False, assume_full_cache=None, core=False))
    FuseRmsNorm().apply(model, argparse.Namespace(explain=False))
    if form == "concat":
        (old,) = {tuple(v.shape.numpy()) for v in model.graphs[0].inputs if len(v.shape) == 4}  # type: ignore[union-attr, arg-type]
        new = (*old[:2], 32, old[3])
        ReshapeIo().apply(model, argparse.Namespace(io="input", by_shape=[(old, new)]))
    TransposeIoKvcache().apply(model, argparse.Namespace(to=layout))
    return model


@pytest.mark.parametrize(
    ("shape", "form", "layout"),
    [("demo", "concat", "BTNH"), ("grouped", "concat", "BNTH"), ("grouped", "static", "BTNH")],
)
def test_decode_step_by_step_gives_the_logits_of_prefill(
    exported_model, shape: str, form: str, layout: str
) -> None:
    """The whole road: both graphs in one file, lowered, on LiteRT; and decode past the exported capacity."""
    prefill, decode = (
        formats.load(exported_model(shape, "prefill")),
        decode_of(exported_model, shape, form, layout),
    )
    ids = exported_feeds(prefill, 0)["input_ids"]
    expected = reference.run_graph(prefill.graphs[0], {"input_ids": ids})
    merged = lower_to_litert(MergeCircles().merged([prefill, decode], ["prefill.circle", "decode.circle"]))
    engine = graphs.interpreter(formats.dumps(merged))
    run_prefill, run_decode = (engine.get_signature_runner(name) for name in ("prefill", "decode"))
    at_once = run_prefill(input_ids=ids)
    assert_close(at_once["logits"], expected["logits"])
    signature = next(signature for signature in merged.signatures if signature.name == "decode")
    caches = {name: value for name, value in signature.inputs.items() if name.startswith("past_")}
    state = {name: np.full(value.shape.numpy(), 7, np.float32) for name, value in caches.items()}  # type: ignore[union-attr]
    for position in range(32):
        step = run_decode(
            input_ids=ids[:, position : position + 1], cache_position=np.array([position]), **state
        )
        assert_close(step["logits"][0, 0], expected["logits"][0, position])
        state = {name: step[name.replace("past", "present")] for name in state}
    for name, cache in state.items():
        rows = cache.transpose(0, 2, 1, 3) if layout == "BTNH" else cache
        assert_close(rows, at_once[name.replace("past", "present")])


@pytest.mark.parametrize(("shape", "layout"), [("demo", "BTNH"), ("grouped", "BNTH"), ("grouped", "BTNH")])
def test_a_prompt_in_pieces_gives_the_logits_of_one(exported_model, shape: str, layout: str) -> None:
    """The last piece at the last position that there is; pieces may overlap."""
    whole = formats.load(exported_model(shape, "prefill"))
    ids = exported_feeds(whole, 0)["input_ids"]
    expected = reference.run_graph(whole.graphs[0], {"input_ids": ids})
    model = lower_to_litert(
        formats.loads(formats.dumps(decode_of(exported_model, shape, "prefill_8", layout)))
    )
    run = graphs.interpreter(formats.dumps(model)).get_signature_runner("prefill_8")
    caches = {name: v for name, v in model.signatures[0].inputs.items() if name.startswith("past_")}
    state = {name: np.full(value.shape.numpy(), 7, np.float32) for name, value in caches.items()}  # type: ignore[union-attr]
    for position in (0, 8, 13, 21, 24):
        piece = slice(position, position + 8)
        step = run(input_ids=ids[:, piece], cache_position=np.array([position]), **state)
        assert_close(step["logits"], expected["logits"][:, piece])
        state = {name: step[name.replace("past", "present")] for name in state}
    for name, cache in state.items():
        rows = cache.transpose(0, 2, 1, 3) if layout == "BTNH" else cache
        assert_close(rows, expected[name.replace("past", "present")])


def test_masks_are_computed_once_for_all_layers(exported_model) -> None:
    found = operators(lower_to_litert(decode_of(exported_model, "grouped", "concat", "BNTH")))
    assert found["MINIMUM"] == 1
    assert found["COS"] == found["SIN"] == 1
    assert found["DYNAMIC_UPDATE_SLICE"] == 6
    assert found["BROADCAST_TO"] == 0
