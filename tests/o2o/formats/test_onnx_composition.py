"""Graphs as branches of one ONNX file: each computes what it did alone, and is read back as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from o2o import formats
from o2o.filters.merge_circles import main
from o2o.formats.onnx_branches import METADATA_NAME
from o2o.model import Model
from tests.o2o.onnx_graphs import branches, data_of, decoder
from tests.tolerances import assert_close

onnxruntime = pytest.importorskip("onnxruntime")
Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parsed(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(proto, full_check=True)
    return proto


WEIGHT = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)


def linear(tokens: int | str, weight: str = "w", inner: str = "y") -> onnx.ModelProto:
    """x [tokens, 64] -> z [tokens, 32]: a weight of 8 KB, which files share, and an If with its own names."""
    text = f"""g (float[{tokens}, 64] x, bool c) => (float[{tokens}, 32] z) {{
        {inner} = MatMul (x, {weight})
        z = If (c) <
            then_branch = a () => (float[{tokens}, 32] t) <float one = {{1}}> {{ t = Add ({inner}, one) }},
            else_branch = b () => (float[{tokens}, 32] t) {{ shared = Relu ({inner}) t = Neg (shared) }}
        >
    }}"""
    return parsed(text, **{weight: WEIGHT})


def merged(*protos: onnx.ModelProto, arguments: tuple[str, ...] = ()) -> onnx.ModelProto:
    files = []
    for name, proto in zip("abcd", protos, strict=False):
        files.append(f"{name}.onnx")
        Path(files[-1]).write_bytes(data_of(proto))
    assert main([*files, *arguments, "-o", "merged.onnx"]) == 0
    onnx.checker.check_model("merged.onnx", full_check=True)
    proto = onnx.load("merged.onnx")
    model = formats.load("merged.onnx")
    formats.save(model, "again.onnx")
    assert Path("again.onnx").read_bytes() == Path("merged.onnx").read_bytes()
    return proto


def run(proto: onnx.ModelProto, feeds: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def selection(proto: onnx.ModelProto) -> dict:
    (record,) = (json.loads(e.value) for e in proto.metadata_props if e.key == METADATA_NAME)
    chosen: dict = record["selected_by"]
    return chosen


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def same(results: Arrays, expected: Arrays) -> None:
    for name, array in expected.items():
        assert_close(results[name], array)


def operators(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


@pytest.mark.parametrize("sizes", [(4, 1), (4, 1, 2), ("T", 1), (1, "T", 8)])
def test_sizes_select_the_branch(sizes: tuple[int | str, ...]) -> None:
    protos = [linear(size, weight) for size, weight in zip(sizes, ("w", "other", "z_1"), strict=False)]
    one = merged(*protos)
    chosen = [[size if isinstance(size, int) else None] for size in sizes]
    assert selection(one) == {"axes": [["x", 0]], "sizes": chosen}
    for size, proto in zip(sizes, protos, strict=True):
        feeds = {"x": numbers(size if isinstance(size, int) else 5, 64), "c": np.array(True)}
        same(run(one, feeds), run(proto, feeds))
    assert [tensor.name for tensor in one.graph.initializer if tensor.dims == [64, 32]] == ["w"]


def test_two_sizes_select_the_branch() -> None:
    """Prefill, decode, and decode with a smaller cache."""

    def model(tokens: int, rows: int) -> onnx.ModelProto:
        return parsed(f"""g (float[{tokens}] x, float[{rows}] cache, int64[1] axes) => (float[1] y) {{
            a = ReduceSum (x, axes)
            b = ReduceMax (cache, axes)
            y = Add (a, b)
        }}""")

    sizes = [(4, 8), (1, 8), (1, 2)]
    one = merged(*(model(*each) for each in sizes))
    assert selection(one) == {"axes": [["x", 0], ["cache", 0]], "sizes": [list(each) for each in sizes]}
    for tokens, rows in sizes:
        feeds = {"x": numbers(tokens), "cache": numbers(rows), "axes": np.array([0])}
        same(run(one, feeds), run(model(tokens, rows), feeds))


def test_names_that_mean_other_things_in_other_graphs() -> None:
    first, second = linear(4, "w", "h"), linear(1, "h", "w")  # both are a weight and a result
    one = merged(first, second)
    for size, proto in ((4, first), (1, second)):
        feeds = {"x": numbers(size, 64), "c": np.array(False)}
        same(run(one, feeds), run(proto, feeds))


def test_a_flag_selects_where_sizes_do_not() -> None:
    whole = decoder()
    prefill = parsed(
        "g (int64[B, T] input_ids) => (float[B, T, 8] logits) { logits = Gather (e, input_ids) }",
        e=numbers(16, 8),
    )
    one = merged(prefill, whole, arguments=("--sig-names", "prefill;decode"))
    assert selection(one)["input"] == "use_cache_branch"
    ids = np.array([[3, 5]])
    feeds: Arrays = {"input_ids": ids, "attention_mask": np.ones((1, 4), np.int64), "position_ids": ids * 0}
    feeds |= {f"past_key_values.0.{kind}": numbers(1, 2, 2, 4) for kind in ("key", "value")}
    same(run(one, {**feeds, "use_cache_branch": np.array([True])}), run(whole, feeds))
    same(run(one, {**feeds, "use_cache_branch": np.array([False])}), run(prefill, {"input_ids": ids}))


def test_a_number_selects_among_equal_inputs() -> None:
    def scaled(by: float) -> onnx.ModelProto:
        return parsed(f"g (float[N] x) => (float[N] y) <float k = {{{by}}}> {{ y = Mul (x, k) }}")

    one = merged(scaled(2), scaled(3), scaled(5))
    for index, by in enumerate((2, 3, 5)):
        results = run(one, {"x": numbers(3), "signature_index": np.array([index])})
        np.testing.assert_array_equal(results["y"], numbers(3) * np.float32(by))


def test_outputs_that_are_constants_or_absent() -> None:
    first = parsed("g (float[2] x) => (float[64, 32] w, float[2] y) { y = Neg (x) }", w=WEIGHT)
    second = parsed("g (float[3] x) => (float[3] y, int64[1] n) { y = Abs (x) n = Shape (x) }")
    one = merged(first, second)
    results = run(one, {"x": numbers(2)})
    same(results, {"w": WEIGHT, "y": -numbers(2)})
    assert results["n"].size == 0
    assert run(one, {"x": numbers(3)})["w"].size == 0
    model = formats.load("merged.onnx")
    assert [[value.name for value in graph.outputs] for graph in model.graphs] == [["w", "y"], ["y", "n"]]
    assert [operators(graph) for graph in model.graphs] == [["Neg"], ["Abs", "Shape"]]
    assert model.graphs[0].outputs[0].is_initializer()


def test_defaults_of_inputs() -> None:
    first = parsed("g (float[2] x, float k) => (float[2] y) { y = Mul (x, k) }")
    first.graph.initializer.append(numpy_helper.from_array(np.float32(3), "k"))
    second = parsed("g (float[3] x) => (float[3] y) { y = Abs (x) }")
    one = merged(first, second)
    same(run(one, {"x": numbers(2)}), {"y": numbers(2) * 3})
    same(run(one, {"x": numbers(2), "k": np.array(4, np.float32)}), {"y": numbers(2) * 4})
    assert "k" in formats.load("merged.onnx").graphs[0].initializers


def test_each_graph_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = linear(4), linear(1, "weight_of_its_own")
    merged(first, second)
    assert "the size of axis 0 of x selects the signature: 4 a, 1 b" in capsys.readouterr().err
    model = formats.load("merged.onnx")
    assert [signature.name for signature in model.signatures] == ["a", "b"]
    for graph, proto in zip(model.graphs, (first, second), strict=True):
        assert [list(value.shape or ()) for value in graph.inputs] == [
            [d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input
        ]
        assert operators(graph) == [node.op_type for node in proto.graph.node]


def test_functions_of_one_name_and_another_body() -> None:
    def with_function(body: str) -> Callable[[int], onnx.ModelProto]:
        def make(size: int) -> onnx.ModelProto:
            return onnx.parser.parse_model(f"""
                <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
                g (float[{size}] x) => (float[{size}] y) {{ y = local.f (x) }}
                <domain: "local", opset_import: ["" : 21]> f (p) => (q) {{ q = {body} (p) }}""")

        return make

    one = merged(with_function("Neg")(2), with_function("Abs")(3), with_function("Neg")(4))
    assert len(one.functions) == 2
    for size, compute in ((2, np.negative), (3, np.abs), (4, np.negative)):
        same(run(one, {"x": numbers(size)}), {"y": compute(numbers(size))})


def test_opsets_are_raised_to_the_newest() -> None:
    text = "g (float[2, 3] x) => (float[1, 3] y) { y = ReduceSum <axes = [0]> (x) }"
    old = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 12]> {text}')
    one = merged(old, parsed("g (float[4, 3] x) => (float[4, 3] y) { y = Neg (x) }"))
    assert [entry.version for entry in one.opset_import] == [21]
    same(run(one, {"x": numbers(2, 3)}), {"y": numbers(2, 3).sum(0, keepdims=True)})


NEGATED = "(float[2] x) => (float[2] y) { y = Neg (x) }"


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("(double[3] x) => (double[3] y) { y = Neg (x) }", "the input x is float in a, and double in b"),
        ("(float[3, 1] x) => (float[3, 1] y) { y = Neg (x) }", "x has 1 dimensions in a, and 2 in b"),
        ("(float[3] y) => (float[3] z) { z = Neg (y) }", "y is an output of a, and an input"),
    ],
)
def test_what_one_file_cannot_hold_is_refused(
    second: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("a", NEGATED), ("b", second)):
        Path(f"{name}.onnx").write_bytes(data_of(parsed(f"g {text}")))
    assert main(["a.onnx", "b.onnx", "-o", "merged.onnx"]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert "rename.io.py" in error
    assert not Path("merged.onnx").exists()


def test_a_file_that_another_tool_changed_has_one_graph() -> None:
    one = merged(linear(4), linear(1))
    (branch,) = (node for node in one.graph.node if node.op_type == "If")
    branch.attribute[0].g.value_info.pop()
    Path("changed.onnx").write_bytes(one.SerializeToString())
    model: Model = formats.load("changed.onnx")
    assert len(model.graphs) == 1
    assert METADATA_NAME in dict(model.metadata)
    formats.save(model, "kept.onnx")
    same(run(onnx.load("kept.onnx"), f := {"x": numbers(4, 64), "c": np.array(True)}), run(one, f))


def test_loops_and_captured_values() -> None:
    one = merged(branches(), linear(4))
    feeds = {"x": numbers(3, 4), "c": np.array(True)}
    same(run(one, feeds), run(branches(), feeds))
