"""What a recipe makes of a model, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.formats.schema import DIALECTS
from o2o.formats.tensors import is_quantized, storage_key
from o2o.lower.litert import lower_to_litert
from o2o.model import Format, Model
from o2o.quantization.quantize import MatrixResult, quantize
from o2o.quantization.recipes import RECIPES, find_recipe
from tests.o2o import fused_graphs
from tests.o2o.fused_graphs import Form
from tests.o2o.graphs import FLOAT, INT32, INT64, SAMPLES, Graph, operators, run, sign, weights
from tests.o2o.quantization.models import V, constants, language_model, meaning

QUANTISING = [name for name in RECIPES if name != "none"]
FORMATS: list[Format] = ["circle", "tflite"]
HALF = ir.DataType.FLOAT16


def by_name(done: list[MatrixResult]) -> dict[str, MatrixResult]:
    return {one.name: one for one in done}


def written(model: Model) -> Model:
    """`model` as it is read again, which loses nothing."""
    data = formats.dumps(model)
    result = formats.loads(data)
    assert formats.dumps(result) == data
    return result


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_no_recipe_makes_a_file_larger(recipe: str, tied: bool, format: Format) -> None:
    model = language_model(format, tied)
    before = len(formats.dumps(model))
    done = quantize(model, find_recipe(recipe))
    after = len(formats.dumps(model))
    reported = sum(one.after - one.before for one in done)
    assert after <= before
    assert abs(after - before - reported) < 6000, "the reported difference, except for operators and names"


@pytest.mark.parametrize("recipe", QUANTISING)
@pytest.mark.parametrize("tied", [False, True])
def test_both_formats_say_the_same(recipe: str, tied: bool) -> None:
    """A quantized Circle file made TFLite, and back, keeps every number and scale."""
    model = language_model("circle", tied)
    quantize(model, find_recipe(recipe))
    first = {name: (value.dtype, meaning(value).tobytes()) for name, value in constants(model).items()}
    model = written(model)
    model.format = "tflite"
    model = written(model)
    for value in constants(model).values():
        details = getattr(value.meta.get("fields", {}).get("quantization"), "details", None)
        if details is not None:
            assert type(details).__module__.startswith("ai_edge_litert")
            quantization = value.meta["fields"]["quantization"]
            unions = DIALECTS["tflite"].unions["QuantizationDetails"]
            assert quantization.detailsType == unions["BlockwiseQuantization"] == 2
    model.format = "circle"
    model = written(model)
    assert {n: (v.dtype, meaning(v).tobytes()) for n, v in constants(model).items()} == first


@pytest.mark.parametrize("recipe", QUANTISING)
@pytest.mark.parametrize("tied", [False, True])
def test_constants_of_several_graphs_stay_one(recipe: str, tied: bool) -> None:
    model = language_model(tied=tied)
    quantize(model, find_recipe(recipe))
    model = written(model)
    first, second = (constants(model, graph) for graph in (0, 1))
    assert len(first) == len(second)
    for name, value in first.items():
        assert value.const_value is not None
        assert second[name].const_value is not None
        assert storage_key(value.const_value) == storage_key(second[name].const_value)


def test_a_gather_of_words_becomes_an_embedding_lookup() -> None:
    model = language_model()
    quantize(model, find_recipe("dynamic_int8"))
    node = next(node for node in model.graphs[0] if node.op_type == "EMBEDDING_LOOKUP")
    ids, table = node.inputs
    assert ids is not None
    assert table is not None
    assert (ids.dtype, ids.shape, table.dtype, node.version) == (INT32, [4], ir.DataType.INT8, 4)
    assert operators(model)["GATHER"] == 0
    table_ = meaning(table)
    model = cut(model, node.outputs[0])
    rows = run(model, {"input_ids": np.array([[0, 1, 77, V - 1]])})
    np.testing.assert_array_equal(rows[node.outputs[0].name or ""], table_[[0, 1, 77, V - 1]])


def cut(model: Model, output: ir.Value) -> Model:
    """The first graph with `output` for its only one."""
    graph = model.graphs[0]
    graph.outputs[:] = [output]
    result = Model("tflite", [graph])
    sign(result, graph)
    return result


def test_halves_are_looked_up_as_they_are() -> None:
    model = language_model()
    quantize(model, find_recipe("float16"))
    node = next(node for node in model.graphs[0] if node.op_type == "GATHER")
    table, rows = node.inputs[0], node.outputs[0]
    assert table is not None
    assert (table.dtype, rows.dtype) == (HALF, HALF), "the table is never made float32"
    assert {use.node.op_type for use in rows.uses()} == {"DEQUANTIZE"}


def test_weight_only_computes_in_float() -> None:
    model = language_model()
    quantize(model, find_recipe("weight_only_int8"))
    for graph in model.graphs:
        for node in graph:
            if node.op_type == "FULLY_CONNECTED":
                produced = node.inputs[1].producer()  # type: ignore[union-attr]
                assert produced is not None
                assert (produced.op_type, produced.version) == ("DEQUANTIZE", 5)
        assert sum(node.op_type == "DEQUANTIZE" for node in graph) == 3


@pytest.mark.parametrize(("recipe", "expected"), [("dynamic_int8", 12), ("dynamic_int4_block32", 1)])
def test_versions(recipe: str, expected: int) -> None:
    """Those of LiteRT's converter: `op_version.cc`."""
    model = language_model()
    quantize(model, find_recipe(recipe))
    assert {n.version for n in model.graphs[0] if n.outputs[0].name == "middle"} == {expected}


@pytest.mark.parametrize(
    ("recipe", "flags", "expected"),
    [
        ("dynamic_int8", {}, {"embed": "int8", "up": "int8", "head": "int8"}),
        ("dynamic_int8", {"embedding": "float"}, {"embed": None, "up": "int8", "head": "int8"}),
        ("dynamic_int8", {"lm_head": "float16"}, {"embed": "int8", "up": "int8", "head": "float16"}),
        ("dynamic_int4_block32", {}, {"embed": "int8", "up": "int4_block32", "head": "int8"}),
        (
            "dynamic_int4_block32",
            {"lm_head": "int4_block32", "embedding": "int4_block32"},
            {"embed": "int4_block32", "up": "int4_block32", "head": "int4_block32"},
        ),
        # a hidden size of 64 is no whole block of 128, that in the middle is
        ("dynamic_int4_block128", {}, {"up": "int4_block32", "down": "int4_block128"}),
        ("none", {"lm_head": "int8"}, {"embed": None, "up": None, "head": "int8"}),
    ],
)
def test_embedding_and_head_on_their_own(
    recipe: str, flags: dict[str, str], expected: dict[str, Any]
) -> None:
    model = language_model()
    done = by_name(quantize(model, find_recipe(recipe, **flags)))
    schemes = {name: one.scheme.name if one.scheme else None for name, one in done.items()}
    assert {name: schemes[name] for name in expected} == expected
    assert done["head"].parts == ["head"]
    assert done["embed"].parts == ["embedding"]
    feeds = {"input_ids": np.array([[1, 2, 3, 4]])}
    exact = run(lower_to_litert(language_model()), feeds)["logits"]
    assert off(run(lower_to_litert(written(model)), feeds)["logits"], exact) < 0.3


def off(result: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(((result - exact) ** 2).mean() / (exact**2).mean()))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({}, "int8"), ({"lm_head": "int4_block32"}, "int8"), ({"embedding": "float"}, None)],
)
def test_tied_tables_take_the_better_scheme(flags: dict[str, str], expected: str | None) -> None:
    model = language_model(tied=True)
    one = by_name(quantize(model, find_recipe("dynamic_int4_block32", **flags)))["embed"]
    assert one.parts == ["embedding", "head"]
    assert (one.scheme.name if one.scheme else None) == expected
    if expected:
        table = constants(written(model))["embed"]
        assert {use.node.op_type for use in table.uses()} == {"EMBEDDING_LOOKUP", "FULLY_CONNECTED"}


def test_halves_that_are_there_already_are_quantized_too() -> None:
    """As `export --dtype float16` makes them: a constant, and a DEQUANTIZE behind it."""
    graph = Graph("main")
    x = graph.input("x", [2, 64])
    w = weights(32, 64).astype(np.float16)
    full = graph.op("DEQUANTIZE", [graph.constant("w", w)], [32, 64], FLOAT, "wide")
    graph.output(graph.fc(x, full, "y"))
    for recipe, expected in (("dynamic_int8", 0), ("weight_only_int8", 1)):
        model = formats.loads(formats.dumps(graph.model()))
        quantize(model, find_recipe(recipe))
        assert operators(model)["DEQUANTIZE"] == expected
        (value,) = constants(model).values()
        assert value.dtype == ir.DataType.INT8
        numbers = np.abs(meaning(value) - w.astype(np.float32))
        assert numbers.max() <= np.abs(w).max() / 254 * 1.001
        feeds = {"x": weights(2, 64, seed=4)}
        exact = feeds["x"] @ w.astype(np.float32).T
        assert off(run(lower_to_litert(written(model)), feeds)["y"], exact) < 0.02


@pytest.mark.parametrize("recipe", QUANTISING)
@pytest.mark.parametrize(
    "form", [Form(T=4, H=16, pos=None), Form(H=16, layout="BTNH"), Form(T=3, H=32, G=1, layout="BNTH")]
)
def test_attention_takes_quantized_weights(form: Form, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same attention as with the floats that the stored weights stand for."""
    monkeypatch.setattr(fused_graphs, "D", 64)
    monkeypatch.setattr(fused_graphs, "weights", lambda *shape, seed: weights(*shape, seed=seed) / 8)
    model = fused_graphs.attention(form)
    feeds = fused_graphs.feeds_at(model, 2)
    meant = formats.loads(formats.dumps(model))
    done = quantize(model, find_recipe(recipe))
    assert [one.parts for one in done if one.scheme] == [["matrix"]] * 4
    for name, value in constants(model).items():
        meant.graphs[0].initializers[name].const_value = ir.Tensor(meaning(value), name=name)
    exact, result = run(lower_to_litert(meant), feeds), run(lower_to_litert(written(model)), feeds)
    assert list(result) == list(exact)
    for name in exact:
        assert off(result[name], exact[name]) < (0.02 if recipe.startswith("dynamic") else 1e-5)


# ---- left alone ------------------------------------------------------------------------------------


def only(model: Model, recipe: str = "dynamic_int8") -> MatrixResult:
    """What became of the only matrix, of which nothing did."""
    before = formats.dumps(model)
    (one,) = quantize(model, find_recipe(recipe))
    assert formats.dumps(model) == before
    assert one.scheme is None
    assert one.before == one.after
    return one


def test_weights_that_are_no_constant_are_no_candidates() -> None:
    graph = Graph("main")
    x, w = graph.input("x", [2, 64]), graph.input("w", [32, 64])
    graph.output(graph.fc(x, w, "y"))
    model = graph.model()
    assert quantize(model, find_recipe("dynamic_int8")) == []
    assert model.metadata == []


@pytest.mark.parametrize("recipe", [name for name in QUANTISING if name != "float16"])
def test_rows_of_four_are_too_short(recipe: str) -> None:
    graph = Graph("main")
    graph.output(graph.fc(graph.input("x", [2, 4]), graph.constant("w", weights(100, 4)), "y"))
    assert only(graph.model(), recipe).reason == "it would not become smaller"


def test_what_others_use_stays() -> None:
    graph = Graph("main")
    x, w = graph.input("x", [32, 64]), graph.constant("w", weights(32, 64))
    graph.output(graph.fc(x, w, "y"), graph.op("ADD", [x, w], [32, 64], name="z"))
    assert only(graph.model()).reason == "ADD takes no quantized operand here"


def test_what_is_given_out_stays() -> None:
    graph = Graph("main")
    w = graph.constant("w", weights(32, 64))
    graph.output(graph.fc(graph.input("x", [2, 64]), w, "y"), w)
    assert only(graph.model()).reason == "it is an output"


def test_weights_of_more_axes_stay() -> None:
    graph = Graph("main")
    w = graph.constant("w", weights(32, 64).reshape(1, 1, 32, 64))
    graph.output(graph.op("FULLY_CONNECTED", [graph.input("x", [2, 64]), w, None], [2, 32], name="y"))
    model = graph.model()
    assert quantize(model, find_recipe("dynamic_int8")) == []


def test_tables_that_are_not_of_words_stay() -> None:
    """Rotations by position, say."""
    graph = Graph("main")
    position = graph.input("cache_position", [1], INT64)
    rows = {"axis": 0, "batchDims": 0}
    graph.output(
        graph.op("GATHER", [graph.constant("cos", weights(64, 64)), position], [1, 64], FLOAT, **rows)
    )
    model = graph.model()
    assert quantize(model, find_recipe("dynamic_int8")) == []


def test_what_is_quantized_already_stays() -> None:
    model = language_model()
    quantize(model, find_recipe("dynamic_int8"))
    model = written(model)
    before = formats.dumps(model)
    assert quantize(model, find_recipe("dynamic_int4_block32")) == []
    assert formats.dumps(model) == before


@pytest.mark.parametrize("recipe", QUANTISING)
@pytest.mark.parametrize("sample", sorted(SAMPLES))
def test_anything_that_a_file_can_hold(sample: str, recipe: str) -> None:
    model = SAMPLES[sample]()
    before = len(formats.dumps(model))
    done = quantize(model, find_recipe(recipe))
    if any(one.scheme for one in done):
        assert len(formats.dumps(model)) < before
        assert any(is_quantized(v) or v.dtype == HALF for v in model.graphs[0].initializers.values())
    else:
        assert len(formats.dumps(model)) == before


def test_a_head_apart_from_the_embedding() -> None:
    """Each is stored as its own part of the recipe says; what has no head stays as it was."""
    model = language_model(tied=True)
    done = by_name(quantize(model, find_recipe("dynamic_int4_block32_head")))
    assert (done["embed"].scheme.name, done["embed"].parts) == ("int8", ["embedding"])
    assert (done["embed_head"].scheme.name, done["embed_head"].parts) == ("int4_block32", ["head"])
    assert done["embed_head"].before == 0, "it was not there"
    model = written(model)
    stored = {name: value.dtype for name, value in constants(model).items()}
    assert stored["embed"] == ir.DataType.INT8
    assert stored["embed_head"] == ir.DataType.INT4
    untied = language_model()
    assert "head" in by_name(quantize(untied, find_recipe("dynamic_int4_block32_head")))
    assert not any(name.endswith("_head") for name in constants(untied))
