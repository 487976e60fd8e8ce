"""merge.circles: everything of every file, each constant once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from o2o import formats
from o2o.contract import contract_of
from o2o.filters.merge_circles import MergeCircles, main
from o2o.formats.tensors import storage_key
from o2o.model import CUSTOM_DOMAIN, Model
from tests.o2o import graphs
from tests.o2o.graphs import (
    INT32,
    SAMPLES,
    Graph,
    conditional,
    feeds,
    float_models,
    linear,
    loop,
    operators,
    sign,
    weights,
)
from tests.schemas import ENTRY
from tests.tolerances import assert_close

Merge = Callable[..., Model]


class Merging:
    """`merging({"a": model, ...}, "--flag")` writes the models and merges them, in that order."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.capture = capture
        self.said = ""
        self.sizes: dict[str, int] = {}

    def run(self, models: dict[str, Model], *arguments: str) -> tuple[int, Path]:
        files = [self.directory / f"{name}.circle" for name in models]
        for file, model in zip(files, models.values(), strict=True):
            formats.save(model, file)
            self.sizes[file.stem] = file.stat().st_size
        target = self.directory / "merged.circle"
        target.unlink(missing_ok=True)
        code = main([*arguments, *map(str, files), "-o", str(target)])
        self.said = self.capture.readouterr().err
        return code, target

    def __call__(self, models: dict[str, Model], *arguments: str) -> Model:
        code, target = self.run(models, *arguments)
        assert code == 0, self.said
        self.sizes["merged"] = target.stat().st_size
        result = formats.load(target)
        assert formats.dumps(result) == target.read_bytes()
        return result

    def refusal(self, models: dict[str, Model], *arguments: str) -> tuple[int, str]:
        code, target = self.run(models, *arguments)
        assert code != 0
        assert not target.exists()
        assert self.said.count("\n") == 1
        return code, self.said.split(": ", 1)[1].strip()


@pytest.fixture
def merging(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Merging:
    return Merging(tmp_path, capsys)


def fc(name: str, *arrays: np.ndarray, rows: int = 2) -> Model:
    """x times each of `arrays`, one after the other."""
    graph = Graph(name)
    y = graph.input("x", [rows, arrays[0].shape[-1]])
    for number, array in enumerate(arrays):
        y = graph.fc(y, graph.constant(f"w{number}", array), f"y{number}")
    graph.output(y)
    return graph.model()


def storages(model: Model) -> set[tuple[int, int]]:
    actual = [value.const_value for graph in model.graphs for value in graph.initializers.values()]
    return {storage_key(tensor) for tensor in actual if tensor is not None}


def run_signatures(model: Model) -> dict[str, dict[str, np.ndarray]]:
    """All outputs of all signatures, on the same inputs whenever, by LiteRT."""
    engine = graphs.interpreter(formats.dumps(model))
    actual = {}
    for signature in model.signatures:
        given_ = feeds(model, signature.graph)
        named = {name: given_[value.name or ""] for name, value in signature.inputs.items()}
        actual[signature.name] = engine.get_signature_runner(signature.name)(**named)
    return actual


def assert_each_as_before(models: list[Model], merged: Model) -> None:
    expected = {name: outputs for model in models for name, outputs in run_signatures(model).items()}
    actual = run_signatures(merged)
    assert list(actual) == list(expected)
    for name, outputs in expected.items():
        assert actual[name].keys() == outputs.keys()
        for key in outputs:
            assert_close(actual[name][key], outputs[key])


def test_two_models_over_the_same_weights(merging: Merging) -> None:
    w, v = weights(64, 64), weights(64, 64, seed=1)
    prefill, decode = fc("prefill", w, v, rows=4), fc("decode", w, v, rows=1)
    merged = merging({"prefill": prefill, "decode": decode})
    assert merging.said == (
        "merge.circles.py: merged prefill, decode: shared 2 of 4 constants, which saves 32,768 bytes\n"
    )
    assert [signature.name for signature in merged.signatures] == ["prefill", "decode"]
    assert len(storages(merged)) == 2
    assert_each_as_before([prefill, decode], merged)
    saved = merging.sizes["prefill"] + merging.sizes["decode"] - merging.sizes["merged"]
    assert abs(saved - 32768) < 2048, "what it says it saves is what is saved"


@settings(max_examples=25, deadline=None)
@given(models=st.lists(float_models(), min_size=2, max_size=4))
def test_any_models(models: list[Model]) -> None:
    for number, model in enumerate(models):
        model.signatures[0].name = f"s{number}"
        model.format = "circle"
    data = [formats.dumps(model) for model in models]
    merged = MergeCircles().merged(
        [formats.loads(d) for d in data], [f"{n}.circle" for n in range(len(data))]
    )
    merged = formats.loads(formats.dumps(merged))
    assert_each_as_before(models, merged)
    contents = [
        value.const_value.tobytes()  # type: ignore[union-attr]
        for model in models
        for value in model.graphs[0].initializers.values()
    ]
    assert len(storages(merged)) == len(set(contents))


def test_three_and_more(merging: Merging) -> None:
    shared = weights(40, 40)
    models = {name: fc(name, shared, weights(40, 40, seed=k)) for k, name in enumerate("abcde", 1)}
    merged = merging(models)
    assert "merged a, b, c, d, e: shared 4 of 10 constants" in merging.said
    assert_each_as_before(list(models.values()), merged)
    assert [entry.get("merged") for entry in merged.history] == [*(f"{n}.circle" for n in "abcde"), None]
    assert merged.history[-1]["filter"] == "merge.circles.py"


def test_one_file_is_merged_with_itself_alone(merging: Merging) -> None:
    """Equal constants within a file are shared as well."""
    w = weights(40, 40)
    merged = merging({"only": fc("only", w, w.copy())})
    assert "shared 1 of 2 constants" in merging.said
    assert_each_as_before([fc("only", w, w)], merged)


@pytest.mark.parametrize(
    ("first", "second"), [("conditional", "loop"), ("loop", "conditional"), ("composite", "call_once")]
)
def test_every_subgraph_comes_along(merging: Merging, first: str, second: str) -> None:
    """And operators go on running their own: branch 1 of the second file is not branch 1 of the first."""
    models = {name: SAMPLES[name]() for name in (first, second)}
    for name, model in models.items():
        model.signatures[0].name = name
    merged = merging(models)
    assert len(merged.graphs) == sum(len(model.graphs) for model in models.values())
    if "composite" not in models:  # which LiteRT runs only with a kernel for it
        assert_each_as_before(list(models.values()), merged)


def test_equal_names_of_subgraphs_are_told_apart(merging: Merging) -> None:
    one, two = conditional(), conditional()
    two.signatures[0].name = "other"
    merged = merging({"one": one, "two": two})
    names = [graph.name for graph in merged.graphs]
    assert len(set(names)) == len(names) == 8
    assert names[:5] == ["main", "unused", "else", "then", "other"]
    assert_each_as_before([one, two], merged)


def test_subgraphs_without_a_name_stay_so(merging: Merging) -> None:
    models = {"a": fc("a", weights(3, 3)), "b": fc("b", weights(3, 3))}
    for model in models.values():
        model.graphs[0].name = None
    assert [graph.name for graph in merging(models).graphs] == [None, None]


def custom(name: str, code: str, options: bytes, version: int = 1) -> Model:
    graph = Graph(name)
    x, y = graph.input("x", [2]), graph.value("y", [2])
    node = graph.node(code, [x], [y], domain=CUSTOM_DOMAIN)
    node.meta["fields"] = {"customOptions": np.frombuffer(options, np.uint8)}
    node.version = version
    graph.output(y)
    return graph.model()


def test_custom_operators_stay_what_they_are(merging: Merging) -> None:
    merged = merging(
        {
            "a": custom("a", "MyOp", b"1"),
            "b": custom("b", "YourOp", b"2"),
            "c": custom("c", "MyOp", b"3"),
            "d": custom("d", "MyOp", b"4", version=2),
        }
    )
    nodes = [graph[0] for graph in merged.graphs]
    assert [(node.op_type, node.version) for node in nodes] == [
        ("MyOp", 1),
        ("YourOp", 1),
        ("MyOp", 1),
        ("MyOp", 2),
    ]
    assert [bytes(node.meta["fields"]["customOptions"]) for node in nodes] == [b"1", b"2", b"3", b"4"]


def test_versions_of_operators_stay_apart(merging: Merging) -> None:
    models = {name: fc(name, weights(3, 3)) for name in "ab"}
    models["b"].graphs[0][0].version = 4
    assert [graph[0].version for graph in merging(models).graphs] == [1, 4]


def test_equal_bytes_of_another_dtype_and_shape_are_shared(merging: Merging) -> None:
    array = weights(16, 16)
    one, two, three = Graph("one"), Graph("two"), Graph("three")
    one.output(one.op("MUL", [one.input("x", [16]), one.constant("c", array)], [16, 16], name="y"))
    flat = two.constant("c", array.reshape(256))
    two.output(two.op("MUL", [two.input("x", [1]), flat], [256], name="y"))
    bits = three.constant("c", array.view(np.int32))
    three.output(three.op("MUL", [three.input("x", [16], INT32), bits], [16, 16], name="y"))
    models = {graph.ir.name or "": graph.model() for graph in (one, two, three)}
    merged = merging(models)
    assert "shared 2 of 3 constants, which saves 2,048 bytes" in merging.said
    assert len(storages(merged)) == 1
    actual = [graph.initializers["c"] for graph in merged.graphs]
    assert [(list(v.shape), v.dtype) for v in actual] == [
        ([16, 16], graphs.FLOAT),
        ([256], graphs.FLOAT),
        ([16, 16], INT32),
    ]
    assert_each_as_before(list(models.values()), merged)


def test_nothing_else_is_shared(merging: Merging) -> None:
    """One bit is enough, at the end too; and 0 is not -0."""
    base = weights(64, 64)
    other, negative = base.copy(), np.zeros((64, 64), np.float32)
    other.view(np.uint32)[-1, -1] ^= 1
    zero = negative.copy()
    negative[0, 0] = -0.0
    models = {"a": fc("a", base, zero), "b": fc("b", other, negative)}
    merged = merging(models)
    assert "shared 0 of 4 constants, which saves 0 bytes" in merging.said
    assert len(storages(merged)) == 4


def test_quantized_constants_share_bytes_and_keep_their_scales(merging: Merging) -> None:
    one, two = SAMPLES["quantized"](), SAMPLES["quantized"]()
    weight = two.graphs[0].initializers["weight"]
    weight.meta["fields"] = {"quantization": graphs.per_channel([2, 4, 8])}
    two.signatures[0].name = "two"
    merged = merging({"one": one, "two": two})
    assert "shared 1 of 2 constants" in merging.said
    scales = [list(g.initializers["weight"].meta["fields"]["quantization"].scale) for g in merged.graphs]
    assert scales == [[0.5, 0.25, 0.125], [2, 4, 8]]
    assert_each_as_before([one, two], merged)


@pytest.mark.parametrize(
    "sample", ["blockwise", "sparse", "strings", "small_types", "stateful", "variant", "odd_names"]
)
def test_whatever_a_file_may_have(merging: Merging, sample: str) -> None:
    """Merged with itself: each half is the file as it was, every constant shared."""
    one, two = SAMPLES[sample](), SAMPLES[sample]()
    for number, signature in enumerate(two.signatures):
        signature.name = f"two{number}"
    merged = merging({"one": one, "two": two})
    merged.graphs[1].name = merged.graphs[0].name
    first, second = (formats.dumps(Model("circle", [g], metadata=merged.metadata)) for g in merged.graphs)
    assert first == second
    assert len(storages(merged)) <= len(storages(formats.loads(formats.dumps(one))))


# --- names ----------------------------------------------------------------------------------------------


def test_two_signatures_of_one_name_are_refused(merging: Merging) -> None:
    code, said = merging.refusal({"a": linear(), "b": linear()})
    assert code == 1
    assert "have a signature 'main': rename them with --sig-names" in said


def test_sig_names(merging: Merging) -> None:
    two = linear()
    sign(two, two.graphs[0], "second")
    merged = merging({"a": linear(), "b": two}, "--sig-names", "prefill; decode;more")
    assert [signature.name for signature in merged.signatures] == ["prefill", "decode", "more"]
    assert merged.history[-1]["arguments"] == ["--sig-names", "prefill; decode;more"]


@pytest.mark.parametrize(
    ("names", "code", "reason"),
    [
        ("one", 2, "--sig-names gives 1 names for 2 signatures (main, main)"),
        ("one;two;three", 2, "gives 3 names for 2 signatures"),
        ("one,two,three", 2, "gives 3 names for 2 signatures"),
        ("one; ", 2, "has an empty name"),
        ("one;one", 1, "have a signature 'one'"),
    ],
)
def test_sig_names_that_do_not_fit(merging: Merging, names: str, code: int, reason: str) -> None:
    actual, said = merging.refusal({"a": linear(), "b": linear()}, "--sig-names", names)
    assert actual == code
    assert reason in said


def test_the_same_file_twice(merging: Merging, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, target = tmp_path / "a.circle", tmp_path / "twice.circle"
    formats.save(fc("main", weights(64, 64)), file)
    assert main([str(file), str(file), "--sig-names", "one;two", "-o", str(target)]) == 0
    merged = formats.load(target)
    assert "shared 1 of 2 constants" in capsys.readouterr().err
    outputs = run_signatures(merged)
    np.testing.assert_array_equal(outputs["one"]["y0"], outputs["two"]["y0"])


def test_a_file_without_signatures_gives_its_name(merging: Merging) -> None:
    one, two = linear(), loop()
    one.signatures.clear()
    two.signatures.clear()
    merged = merging({"prefill": one, "decode": two})
    assert [signature.name for signature in merged.signatures] == ["prefill", "decode"]
    assert list(merged.signatures[1].outputs) == ["last", "result"]


def test_a_main_graph_that_only_others_sign(merging: Merging) -> None:
    """It would be out of reach in a merged file, where it is not the first."""
    second = fc("helper", weights(3, 3))
    lonely = Model("circle", [fc("lonely", weights(3, 3)).graphs[0], *second.graphs], second.signatures)
    merged = merging({"first": linear(), "second": lonely})
    assert [signature.name for signature in merged.signatures] == ["main", "helper", "second"]


# --- metadata -------------------------------------------------------------------------------------------


def test_metadata_that_agree_and_that_do_not(merging: Merging) -> None:
    one, two = fc("one", weights(3, 3)), fc("two", weights(3, 3))
    one.metadata = [("same", b"1"), ("other", b"first")]
    two.metadata = [("debug", b"2"), ("other", b"second"), ("same", b"1")]
    two.graphs[0].meta["fields"] = {"debugMetadataIndex": 0}
    merged = merging({"one": one, "two": two})
    assert merged.metadata == [("same", b"1"), ("other", b"first"), ("debug", b"2")]
    assert (
        "two.circle: its metadata 'other' is dropped: it differs from that of an earlier file" in merging.said
    )
    assert merged.graphs[1].meta["fields"]["debugMetadataIndex"] == 2, "it is still the entry called debug"


def test_contracts_are_joined(merging: Merging) -> None:
    both = SAMPLES["decoder"]()
    apart = {}
    for index, name in enumerate(("prefill", "decode")):
        model = SAMPLES["decoder"]()
        apart[name] = Model("circle", [model.graphs[index]], [model.signatures[index]])
    assert contract_of(merging(apart)) == contract_of(both)


def test_histories_are_kept_by_file(merging: Merging) -> None:
    one, two = fc("one", weights(3, 3)), fc("two", weights(3, 3))
    one.history = [ENTRY]
    merged = merging({"one": one, "two": two})
    assert merged.history[:2] == [
        {"merged": "one.circle", "history": [ENTRY]},
        {"merged": "two.circle", "history": []},
    ]
    assert merged.history[2]["input"].startswith("sha256:")


# --- streams --------------------------------------------------------------------------------------------


def test_stdin_is_a_file_like_others(tmp_path: Path) -> None:
    one, two = fc("one", weights(64, 64)), fc("two", weights(64, 64))
    formats.save(two, tmp_path / "two.circle")
    command = [sys.executable, "-m", "o2o", "merge.circles", "-", str(tmp_path / "two.circle")]
    done = subprocess.run(command, input=formats.dumps(one), capture_output=True, check=True)
    merged = formats.loads(done.stdout)
    assert [signature.name for signature in merged.signatures] == ["one", "two"]
    assert b"shared 1 of 2 constants" in done.stderr


def test_stdin_can_be_read_only_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-", "-"]) == 2
    assert "only once" in capsys.readouterr().err


@pytest.mark.parametrize("first", ["circle", "tflite"])
def test_circle_and_tflite_are_not_mixed(merging: Merging, first: str) -> None:
    models = {"a": fc("a", weights(3, 3)), "b": fc("b", weights(3, 3))}
    models["b" if first == "circle" else "a"].format = "tflite"
    code, said = merging.refusal(models)
    assert code == 1
    assert "is circle" in said
    assert "is tflite" in said
    assert said.endswith("convert one first")


def test_tflite_files(merging: Merging) -> None:
    models = {"a": fc("a", weights(3, 3)), "b": fc("b", weights(3, 3))}
    for model in models.values():
        model.format = "tflite"
    merged = merging(models)
    assert merged.format == "tflite"
    assert_each_as_before(list(models.values()), merged)


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere.circle", "nowhere.circle"]) == 1
    assert capsys.readouterr().err == "merge.circles.py: nowhere.circle: No such file or directory\n"


def test_two_variables_of_one_name_are_one_from_now_on(merging: Merging) -> None:
    one, two = SAMPLES["call_once"](), SAMPLES["call_once"]()
    two.signatures[0].name = "two"
    merging({"one": one, "two": two})
    assert "now share the variable '/counter'" in merging.said
    assert operators(one)["VAR_HANDLE"] == 2


def test_every_graph_has_its_own_values(merging: Merging) -> None:
    """Tensors of one name in two files stay two tensors."""
    merged = merging({"a": fc("a", weights(3, 3)), "b": fc("b", weights(3, 3, seed=1))})
    values: list[ir.Value] = [graph.initializers["w0"] for graph in merged.graphs]
    assert values[0] is not values[1]
    assert len(storages(merged)) == 2
