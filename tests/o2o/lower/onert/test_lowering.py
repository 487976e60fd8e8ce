"""legalize: onert computes the same as the reference kernels compute for the original graph."""

from __future__ import annotations

from collections.abc import Mapping

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from o2o import formats
from o2o.contract import Role, contract_of, role_of
from o2o.errors import ModelError
from o2o.lower.litert import lower_to_litert
from o2o.lower.onert import Summary, lower_to_onert, lowering
from o2o.model import CUSTOM_DOMAIN, Model, shape_of
from o2o.operators import reference
from o2o.operators.core_attention import CoreAttention
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from o2o.rewriting.cache_layout import transpose_caches
from o2o.rewriting.topological_sort import topological_sort
from tests.o2o.fused_graphs import Form, attention, feeds_at
from tests.o2o.graphs import FLOAT, INT32, INT64, Graph, decoder, feeds, operators, per_channel, weights
from tests.o2o.language_model_graphs import language_model
from tests.o2o.lower.onert.running import run, run_all
from tests.tolerances import assert_close

Arrays = Mapping[str, np.ndarray]


def legalized(model: Model) -> Model:
    """`model`, legalized, as it comes out of a file."""
    lower_to_onert(model)
    topological_sort(model.graphs[0])
    return formats.loads(formats.dumps(model))


def in_layouts_of(given: Arrays, before: Model, after: Model) -> dict[str, np.ndarray]:
    """Inputs of the decode graph of `before`, with caches in the layouts of `after`."""
    old = {v.name: role_of(v) for v in decode_of(before).inputs}
    found = {}
    for value in after.graphs[0].inputs:
        role, old_role, array = role_of(value), old[value.name], given[value.name or ""]
        if role is not None and old_role is not None and role.layout and old_role.layout:
            array = array.transpose([old_role.layout.index(axis) for axis in role.layout])
        found[value.name or ""] = np.ascontiguousarray(array)
    return found


def decode_of(model: Model) -> ir.Graph:
    return next((s.graph for s in model.signatures if s.name == "decode"), model.graphs[0])


def expected_of(model: Model, given: Arrays, position: int) -> dict[str, np.ndarray]:
    """The outputs of decode by role or name, of caches only the row at `position` [1, K, 1, H]."""
    graph = decode_of(model)
    fed = {name: array.copy() for name, array in given.items()}
    found = reference.run_graph(graph, fed)  # which writes into the caches
    written = {v.name or "": fed[v.name or ""] for v in graph.inputs if role_of(v) is not None}
    rows = {}
    for value, array in [
        *((v, found[v.name or ""]) for v in graph.outputs),
        *((v, written[v.name or ""]) for v in graph.inputs if v.name in written),
    ]:
        role = role_of(value)
        if role is None or role.layout is None:
            rows.setdefault(value.name or "", array)
        else:
            by_head = array.transpose([role.layout.index(axis) for axis in "BNTH"])
            rows[f"{role.kind.removesuffix('_cache')} {role.layer}"] = by_head[:, :, position : position + 1]
    for value in graph.outputs:  # rather than the cache that came in
        role = role_of(value)
        if role is not None and role.layout is not None:
            by_head = found[value.name or ""].transpose([role.layout.index(axis) for axis in "BNTH"])
            rows[f"{role.kind} {role.layer}"] = by_head[:, :, position : position + 1]
    return rows


def by_role(model: Model, found: Arrays) -> dict[str, np.ndarray]:
    rows = {}
    for value in model.graphs[0].outputs:
        role = role_of(value)
        name = value.name or ""
        key = name if role is None or role.layout is None else f"{role.kind} {role.layer}"
        rows[key] = found[name].reshape(shape_of(value))
    return rows


def assert_the_same(found: Arrays, expected: Arrays) -> None:
    for name, array in found.items():
        assert_close(array, expected[name], err_msg=name)


@st.composite
def forms(draw: st.DrawFn) -> Form:
    return Form(
        *(1, draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([2, 4, 10]))),
        S=draw(st.integers(5, 7)),
        layout=draw(st.sampled_from(["BNTH", "BTNH"])),
        rotate=draw(st.booleans()),
        pos=draw(st.sampled_from([(1,), (), None])),
        pos_dtype=draw(st.sampled_from([INT32, INT64])),
    )


@settings(max_examples=60, deadline=None)
@given(form=forms())
def test_attention_by_the_reference(form: Form) -> None:
    before, after = attention(form), legalized(attention(form))
    assert not {"ATTENTION", "DYNAMIC_UPDATE_SLICE"} & set(operators(after))
    for position in (0,) if form.pos is None else (0, 1, form.S - 1):
        given_ = feeds_at(before, position)
        found = by_role(after, reference.run_graph(after.graphs[0], in_layouts_of(given_, before, after)))
        assert list(found) == ["key 0", "value 0", "y"]
        assert_the_same(found, expected_of(before, given_, position))


def test_attention_on_onert() -> None:
    tried = [
        Form(K=K, G=G, H=H, layout=layout, rotate=rotate, pos_dtype=dtype)
        for K, G, H in ((1, 1, 4), (2, 3, 10), (4, 1, 2), (7, 1, 4))
        for layout, rotate, dtype in (("BNTH", True, INT64), ("BTNH", False, INT32))
    ]
    cases = []
    for form in tried:
        before, after = attention(form), legalized(attention(form))
        for position in (0, 3, form.S - 1):
            given_ = feeds_at(before, position)
            cases.append((after, in_layouts_of(given_, before, after), expected_of(before, given_, position)))
    for (after, _, expected), found in zip(cases, run_all([case[:2] for case in cases]), strict=True):
        assert not isinstance(found, str), found
        assert_the_same(by_role(after, found), expected)


def core(operands: str = "", T: int = 1, **options: object) -> Model:
    """`o2o.attention` over two caches that DYNAMIC_UPDATE_SLICE writes; slopes and sinks are constants."""
    K, G, S, H = 2, 2, 7, 4
    graph = Graph("decode")
    position = graph.input("pos", [1], INT32)
    zeros = [graph.constant(f"zeros_{n}", np.zeros(n, np.int32)) for n in (2, 1)]
    start = graph.op("CONCATENATION", [zeros[0], position, zeros[1]], [4], INT32, axis=0)
    graph.op("NEG", [graph.input("q", [1, K * G, T, H])], [1, K * G, T, H], name="queries")
    written = []
    for kind in ("key", "value"):
        past = graph.input(f"past_{kind}_0", [1, K, S, H])
        past.meta["role"] = Role(f"{kind}_cache", 0, "BNTH")  # type: ignore[arg-type]
        row = graph.op("NEG", [graph.input(f"new_{kind}", [1, K, T, H])], [1, K, T, H], name=f"{kind}_row")
        new = graph.op("DYNAMIC_UPDATE_SLICE", [past, row, start], [1, K, S, H], name=f"present_{kind}_0")
        new.meta["role"] = past.meta["role"].output_role
        written.append(new)
    shapes = {"mask": (1, 1, T, S), "slopes": (K * G,), "sinks": (K * G,)}
    optional = {
        name: graph.constant(
            name, (np.linspace(0.3, 1.4, int(np.prod(shape))) ** 2).astype(np.float32).reshape(shape)
        )
        for name, shape in shapes.items()
        if name in operands.split()
    }
    queries = next(value for node in graph.ir for value in node.outputs if value.name == "queries")
    settings = {"scale": 0.3} | options | optional
    node = CoreAttention(queries, *written, position, **settings).build("attended")  # type: ignore[arg-type]
    graph.ir.append(node)
    graph.output(graph.op("NEG", [node.outputs[0]], [1, T, K * G, H], name="y"), *written)
    return graph.model()


CORES: dict[str, dict[str, object]] = {
    "plain": {},
    "a soft-cap": {"softcap": 1.5},
    "a window": {"window": 3},
    "a window of one": {"window": 1},
    "slopes": {"operands": "slopes"},
    "sinks": {"operands": "sinks"},
    "everything": {"operands": "slopes sinks", "softcap": 1.5, "window": 2},
}


def test_the_core_of_attention_on_onert() -> None:
    cases = []
    for options in CORES.values():
        before, after = core(**options), legalized(core(**options))  # type: ignore[arg-type]
        for position in (0, 3, 6):
            given_ = feeds(before) | {"pos": np.int32([position])}
            cases.append((after, in_layouts_of(given_, before, after), expected_of(before, given_, position)))
    for (after, feeds_, expected), result in zip(cases, run_all([case[:2] for case in cases]), strict=True):
        assert not isinstance(result, str), result
        assert_the_same(by_role(after, reference.run_graph(after.graphs[0], feeds_)), expected)
        assert_the_same(by_role(after, result), expected)


def written_elsewhere() -> Model:
    model = core()
    node = next(node for node in model.graphs[0] if node.op_type == "CONCATENATION")
    zero, last = node.inputs[0], node.inputs[2]
    node.replace_input_with(0, last)
    node.replace_input_with(2, zero)
    return model


def over_plain_inputs() -> Model:
    model = core()
    (graph,) = model.graphs
    node = next(node for node in graph if node.op_type == "o2o.attention")
    node.replace_input_with(1, next(value for value in graph.inputs if value.name == "past_key_0"))
    return model


def test_the_contract_tells_the_layouts_and_the_rows() -> None:
    model = legalized(attention(Form(layout="BTNH")))
    assert [role_of(v) for v in model.graphs[0].inputs if role_of(v)] == [
        Role("key_cache", 0, "BNTH"),
        Role("value_cache", 0, "BNHT"),
    ]
    (signature,) = contract_of(model)["signatures"].values()
    inputs = {entry["name"]: entry["shape"] for entry in signature["inputs"]}
    assert (inputs["past_key_0"], inputs["past_value_0"]) == ([1, 2, 7, 4], [1, 2, 4, 7])
    outputs = [(entry["name"], entry.get("role"), entry["shape"]) for entry in signature["outputs"]]
    assert outputs == [
        ("present_key_0", "key", [1, 2, 1, 4]),
        ("present_value_0", "value", [1, 2, 1, 4]),
        ("y", None, [1, 1, 5]),
    ]


def test_no_cache_is_copied() -> None:
    found = operators(legalized(attention(Form(layout="BTNH", S=64))))
    assert found["TRANSPOSE"] == 0
    model = legalized(attention(Form(layout="BTNH", S=64)))
    caches = {v for v in model.graphs[0].inputs if role_of(v)}
    users = {use.node.op_type for cache in caches for use in cache.uses()}
    assert users == {"BATCH_MATMUL"}


def test_updates_of_one_row_in_place() -> None:
    """As `--cache static` exports them."""
    after = legalized(language_model())
    assert [s.name for s in after.signatures] == ["decode"]
    assert not operators(after)["DYNAMIC_UPDATE_SLICE"]
    for position in (0, 3, 7):
        given_ = feeds(language_model(), decode_of(language_model()), seed=position)
        given_["cache_position"] = np.int64([position])
        expected = expected_of(language_model(), given_, position)
        fed = in_layouts_of(given_, language_model(), after)
        for found in (reference.run_graph(after.graphs[0], fed), run(after, fed)):
            rows = by_role(after, found)
            assert list(rows) == ["logits", "key 0", "value 0"]
            assert_the_same(rows, expected)


def test_twice_is_once() -> None:
    for make in (language_model, lambda: attention(Form(layout="BTNH")), lambda: quantized("dynamic_int8")):
        once = formats.dumps(legalized(make()))
        assert formats.dumps(legalized(formats.loads(once))) == once


def test_the_others_are_left_out_with_what_they_need() -> None:
    model = language_model((4, 1, 1), ("prefill_4", "decode_8", "decode"))
    assert lower_to_onert(model).dropped == ["prefill_4", "decode_8"]
    assert len(model.graphs) == 1
    assert isinstance(
        lower_to_onert(language_model((1,), ("step",))), Summary
    )  # one alone may be called otherwise


def test_an_output_that_is_read_inside_gets_a_copy() -> None:
    after = legalized(attention(Form(layout="BNTH")))
    assert all(not value.uses() for value in after.graphs[0].outputs)


def quantized(recipe: str) -> Model:
    """Tokens and an unused cache in; a table, and as many logits as take int8."""
    graph = Graph("decode")
    ids = graph.input("ids", [1, 1], INT64)
    ids.meta["role"] = Role("tokens")
    cache = graph.input("past_key_0", [1, 1, 4, 64])
    cache.meta["role"] = Role("key_cache", 0, "BNTH")
    table = graph.constant("model.embed_tokens.weight", weights(300, 64))
    x = graph.op("GATHER", [table, ids], [1, 1, 64], FLOAT, axis=0)
    graph.output(graph.fc(x, graph.constant("head", weights(200, 64, seed=1)), "logits"))
    model = graph.model()
    quantize(model, find_recipe(recipe, None, None))
    return model


@pytest.mark.parametrize("recipe", ["dynamic_int8", "weight_only_int8", "float16"])
def test_quantized_weights(recipe: str) -> None:
    """Within what quantizing loses; int8 products are computed in int8."""
    given_ = {"ids": np.int64([[17]]), "past_key_0": np.zeros((1, 1, 4, 64), np.float32)}
    exact = weights(300, 64)[17] @ weights(200, 64, seed=1).T
    after = legalized(quantized(recipe))
    found = run(after, given_)["logits"].reshape(-1)
    assert np.abs(found - exact).max() < (2e-3 if recipe == "float16" else 0.02) * np.abs(exact).max()
    heads = [node.inputs[1] for node in after.graphs[0] if node.op_type == "FULLY_CONNECTED"]
    expected = ir.DataType.INT8 if recipe == "dynamic_int8" else FLOAT
    assert [w.dtype for w in heads if w is not None] == [expected]


def test_int8_with_one_scale_stays() -> None:
    after = legalized(with_weights(ir.DataType.INT8, [0.01]))
    assert operators(after)["MUL"] == 0


def with_weights(
    dtype: ir.DataType, scales: list[float], zero: int = 0, axis: int = 0, act: int = 0
) -> Model:
    graph = Graph("decode")
    x = graph.input("x", [1, 1, 4])
    cache = graph.input("past_key_0", [1, 1, 4, 2])
    cache.meta["role"] = Role("key_cache", 0, "BNTH")
    w = graph.raw_constant("w", bytes(16 if dtype == ir.DataType.INT8 else 8), [4, 4], dtype)
    parameters = per_channel(scales, axis)
    parameters.zeroPoint = np.full(len(scales), zero)
    w.meta["fields"] = {"quantization": parameters}
    y = graph.op("FULLY_CONNECTED", [x, w, None], [1, 1, 4], FLOAT, "y")
    graph.output(y)
    return graph.model()


def custom() -> Model:
    graph = Graph("decode")
    x = graph.input("x", [1, 2])
    graph.input("past_key_0", [1, 2, 8, 4]).meta["role"] = Role("key_cache", 0, "BNTH")
    y = graph.value("y", [1, 2])
    graph.node("somebodys.operator", [x], [y], domain=CUSTOM_DOMAIN)
    graph.output(y)
    return graph.model()


def with_operator(op_type: str, dtype: ir.DataType, rank: int = 3, **options: object) -> Model:
    graph = Graph("decode")
    shape = [1] * (rank - 2) + [3, 4]
    cache = graph.input("past_key_0", [1, 1, 4, 2])
    cache.meta["role"] = Role("key_cache", 0, "BNTH")
    x = graph.input("x", shape, dtype)
    graph.output(graph.op(op_type, [x, x], shape, dtype, "layer.0/y", **options))
    return graph.model()


def rotating(shape: tuple[int, ...], tables: tuple[int, ...], mode: int = 0) -> Model:
    graph = Graph("decode")
    cache = graph.input("past_key_0", [1, 1, 4, 2])
    cache.meta["role"] = Role("key_cache", 0, "BNTH")
    x = graph.input("x", shape)
    graph.output(
        graph.op("ROPE", [x, graph.input("sin", tables), graph.input("cos", tables)], shape, mode=mode)
    )
    return graph.model()


@pytest.mark.parametrize(
    ("shape", "tables", "stays"),
    [
        ((1, 3, 1, 4), (1, 1, 1, 4), True),
        ((1, 3, 1, 4), (1, 1, 4), True),
        ((1, 3, 2, 4), (1, 1, 2, 4), False),
        ((1, 3, 1, 4), (1, 3, 1, 4), False),
        ((3, 4), (3, 4), False),
    ],
)
def test_rotations(shape: tuple[int, ...], tables: tuple[int, ...], stays: bool) -> None:
    """ROPE of one position stays; of several it is arithmetic."""
    after = legalized(rotating(shape, tables))
    assert operators(after)["ROPE"] == stays
    given_ = feeds(after)
    expected = reference.run_graph(rotating(shape, tables).graphs[0], given_)
    assert_the_same(run(after, given_), expected)


@pytest.mark.parametrize("axis", [2, -1])
def test_parts_of_several_sizes(axis: int) -> None:
    graph = Graph("decode")
    x, cache = graph.input("x", [1, 2, 8]), graph.input("past_key_0", [1, 1, 4, 2])
    cache.meta["role"] = Role("key_cache", 0, "BNTH")
    parts = [graph.value(f"part_{size}", [1, 2, size]) for size in (5, 1, 2)]
    sizes = [graph.constant("sizes", np.int32([5, 1, 2])), graph.constant("axis", np.int32(axis))]
    graph.node("SPLIT_V", [x, *sizes], parts, [ir.AttrInt64("numSplits", 3)])
    graph.output(*parts)
    model = graph.model()
    given_ = feeds(model)
    found = run(legalized(model), given_)
    for part, wanted in zip(found.values(), np.split(given_["x"], [5, 6], axis=2), strict=True):
        np.testing.assert_array_equal(part, wanted)


def giving_rows(rows: int) -> Model:
    """As a decode over a cache that CONCATENATION makes longer gives them."""
    graph = Graph("decode")
    cache, new = graph.input("past_key_0", [1, 2, 4, 3]), graph.input("x", [1, 2, rows - 4, 3])
    cache.meta["role"] = Role("key_cache", 0, "BNTH")
    longer = graph.op("CONCATENATION", [cache, new], [1, 2, rows, 3], name="present_key_0", axis=2)
    longer.meta["role"] = Role("key", 0, "BNTH")
    graph.output(longer)
    return graph.model()


def writing(rows: int, axis: int = 2, with_role: bool = True) -> Model:
    graph = Graph("decode")
    shape = [1, 2, 4, 3]
    part = [rows if index == axis else size for index, size in enumerate(shape)]
    cache, new, start = graph.input("past", shape), graph.input("x", part), graph.input("s", [4], INT32)
    other = graph.input("past_key_1", shape)
    other.meta["role"] = Role("key_cache", 1, "BNTH")
    if with_role:
        cache.meta["role"] = Role("key_cache", 0, "BNTH")
    graph.output(graph.op("DYNAMIC_UPDATE_SLICE", [cache, new, start], shape, name="y"))
    return graph.model()


def dynamic() -> Model:
    model = attention(Form(layout="BNTH"))
    model.graphs[0].inputs[0].meta["fields"] = {"shapeSignature": np.int32([1, -1, 5])}
    return model


REFUSED = {
    "a mask": (
        lambda: attention(Form(layout="BNTH", mask=(1, 7))),
        "o2o.attention .* has a mask, mask, that",
    ),
    "no caches": (lambda: attention(Form()), "no decode signature: exactly one of 'decode' must"),
    "caches without a role": (
        lambda: attention(Form(layout="BNTH", has_roles=False)),
        "no decode signature: exactly one of 'decode' must",
    ),
    "several tokens": (lambda: attention(Form(T=3, layout="BNTH")), "takes 3 tokens: onert runs decode only"),
    "no fixed shape": (dynamic, "x has no fixed shape"),
    "TFLite": (lambda: lower_to_litert(attention(Form(layout="BNTH"))), "needs a Circle model"),
    "no decode": (
        lambda: language_model((4,), ("prefill_4",)),
        "no decode signature: exactly one of 'prefill_4' must",
    ),
    "two decodes": (
        lambda: language_model((1, 1), ("a", "b")),
        "no decode signature: exactly one of 'a', 'b' must",
    ),
    "whole caches": (lambda: giving_rows(5), "decode returns 5 rows of present_key_0, not the new row alone"),
    "two rows": (
        lambda: writing(2),
        r"no operator DYNAMIC_UPDATE_SLICE \(y in decode\): it can be legalized only",
    ),
    "another axis": (lambda: writing(1, axis=1), "no operator DYNAMIC_UPDATE_SLICE"),
    "a cache that is none": (lambda: writing(1, with_role=False), "no operator DYNAMIC_UPDATE_SLICE"),
    "a custom operator": (custom, "no operator somebodys.operator"),
    "a core with a mask": (lambda: core("mask"), "o2o.attention .* has a mask"),
    "a core of several tokens": (lambda: core(T=2), "takes 2 tokens: onert runs decode only"),
    "a core over plain inputs": (
        over_plain_inputs,
        "past_key_0 is not a cache that DYNAMIC",
    ),
    "a row at another axis": (written_elsewhere, "o2o.attention .*: at position 1 the cache is written at"),
    "no such operator": (
        lambda: with_operator("FLOOR_MOD", FLOAT),
        r"no operator FLOOR_MOD \(layer.0/y in decode, module layer.0\)",
    ),
    "no such dtype": (lambda: with_operator("DIV", INT32), "does not compute DIV .*: x is INT32"),
    "too many axes": (
        lambda: with_operator("BATCH_MATMUL", FLOAT, 5, adjointRhs=True),
        "does not compute BATCH_MATMUL .*: x has more than 4 axes",
    ),
    "an odd activation": (
        lambda: with_operator("ADD", FLOAT, fusedActivationFunction=4),
        "does not compute ADD .*: its fused activation is neither",
    ),
    "neighbors": (lambda: rotating((1, 3, 1, 4), (1, 1, 1, 4), mode=1), "rotates neighbors"),
    "int4": (lambda: with_weights(ir.DataType.INT4, [1.0] * 4), "w is INT4, and onert computes with float32"),
    "zero points": (lambda: with_weights(ir.DataType.INT8, [1.0] * 4, zero=3), "w has zero points"),
    "scales by column": (
        lambda: with_weights(ir.DataType.INT8, [1.0] * 4, axis=1),
        "scales that are not per row",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused(why: str) -> None:
    make, message = REFUSED[why]
    with pytest.raises(ModelError, match=message):
        lower_to_onert(make())


def test_a_little_model_is_refused_only_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    lower_to_onert(language_model())
    monkeypatch.setattr(lowering, "LIMIT", 100)
    with pytest.raises(ModelError, match="onert reads no file over 2 GB"):
        lower_to_onert(language_model())


def test_caches_that_onert_wants_are_not_turned_again() -> None:
    model = legalized(attention(Form(layout="BTNH")))
    with pytest.raises(ModelError, match="past_value_0 has the layout BNHT"):
        transpose_caches(model, model.graphs[0], "BTNH")


def test_whole_caches_of_a_graph_without_writes_are_refused() -> None:
    with pytest.raises(ModelError, match="returns 8 rows of key_0"):
        lower_to_onert(decoder())
