"""diff.model.py: nothing for the same model, and for each change a line that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.contract import Role
from o2o.filters.diff_model import main
from o2o.model import Model
from tests.o2o.graphs import SAMPLES, Graph, decoder, linear

Diff = Callable[..., tuple[int, str]]


@pytest.fixture
def difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Diff:
    def run(first: Model, second: Model, *flags: str) -> tuple[int, str]:
        for name, model in (("a", first), ("b", second)):
            formats.save(model, tmp_path / name)
        code = main([*flags, str(tmp_path / "a"), str(tmp_path / "b")])
        captured = capsys.readouterr()
        assert captured.err == ""
        assert "--json" in flags or (code == 0) == (captured.out == "")
        return code, captured.out.replace(str(tmp_path), "")

    return run


@pytest.mark.parametrize("sample", sorted(SAMPLES))
def test_nothing_differs(sample: str, difference: Diff) -> None:
    assert difference(SAMPLES[sample](), SAMPLES[sample]()) == (0, "")
    code, text = difference(SAMPLES[sample](), SAMPLES[sample](), "--json")
    assert code == 0
    assert json.loads(text)["same"] is True


def with_constant(name: str, numbers: Any) -> Model:
    model = linear()
    value = model.graphs[0].initializers[name]
    value.const_value = ir.Tensor(np.float32(numbers), name=name)
    value.shape = value.const_value.shape
    return model


def weight_changed() -> Model:
    return with_constant("bias", [*linear().graphs[0].initializers["bias"].const_value.numpy()[:2], 9])  # type: ignore[union-attr]


def operator_inserted() -> Model:
    model = linear()
    graph = Graph("main")
    graph.ir = model.graphs[0]
    add = list(graph.ir)[1]
    y = add.inputs[0]
    assert y is not None
    add.replace_input_with(0, graph.op("RELU", [y], [2, 3], name="positive"))
    relu = list(graph.ir)[2]
    graph.ir.remove(relu)
    graph.ir.insert_before(add, relu)
    return model


def option_changed() -> Model:
    model = linear()
    next(iter(model.graphs[0])).attributes["fusedActivationFunction"] = ir.AttrInt64(
        "fusedActivationFunction", 1
    )
    return model


def version_changed() -> Model:
    model = linear()
    next(iter(model.graphs[0])).version = 4
    return model


def operands_swapped() -> Model:
    model = linear()
    add = list(model.graphs[0])[1]
    x, y = add.inputs
    add.replace_input_with(0, y)
    add.replace_input_with(1, x)
    return model


def output_renamed() -> Model:
    model = linear()
    signature = model.signatures[0]
    signature.outputs = {"logits" if name == "y" else name: v for name, v in signature.outputs.items()}
    return model


def tensor_renamed() -> Model:
    model = linear()
    model.graphs[0].outputs[0].name = "hidden"
    return model


def output_removed() -> Model:
    model = linear()
    model.graphs[0].outputs.pop()
    model.signatures[0].outputs.pop("z")
    return model


def signature_removed() -> Model:
    model = linear()
    model.signatures.clear()
    return model


def graph_renamed() -> Model:
    model = linear()
    model.graphs[0].name = "decode"
    return model


def format_changed() -> Model:
    return linear("tflite")


def metadata_added() -> Model:
    model = linear()
    model.metadata = [("min_runtime_version", b"1.5.0")]
    return model


def history_added() -> Model:
    model = linear()
    model.history = [{"filter": "gc.py", "arguments": ["--x"], "version": "1", "input": f"sha256:{0:064}"}]
    return model


def role_added() -> Model:
    model = linear()
    model.graphs[0].outputs[0].meta["role"] = Role("logits")
    return model


def shape_changed() -> Model:
    model = linear()
    for value in (*model.graphs[0].inputs, *model.graphs[0].outputs):
        assert value.shape is not None
        value.shape = ir.Shape([5, *value.shape.numpy()[1:]])
    return model


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (weight_changed, "  bias: 1 of 3 numbers differ, by at most "),
        (operator_inserted, "  + RELU(y) = positive"),
        (operator_inserted, "  ADD z: operand 0: y -> positive"),
        (option_changed, "  FULLY_CONNECTED y: option fusedActivationFunction: 0 -> 1"),
        (version_changed, "  FULLY_CONNECTED y: version: 1 -> 4"),
        (operands_swapped, "  ADD z: operand 0: y -> one; operand 1: one -> y"),
        (output_renamed, "  output y: name y -> logits"),
        (tensor_renamed, "  renamed: y -> hidden"),
        (output_removed, "  - output z: float32 [2,3]"),
        (signature_removed, "- signature main"),
        (graph_renamed, "  name: 'main' -> 'decode'"),
        (format_changed, "format: circle -> tflite"),
        (metadata_added, "+ metadata min_runtime_version (5 bytes)"),
        (history_added, "  + gc.py --x"),
        (role_added, "  y of main: none -> logits"),
        (shape_changed, "  input x: shape [2,4] -> [5,4]"),
    ],
)
def test_each_change_is_named(change: Callable[[], Model], line: str, difference: Diff) -> None:
    code, text = difference(linear(), change())
    assert code == 1
    assert text.startswith("--- /a\n+++ /b\n")
    assert any(one.startswith(line) for one in text.splitlines()), text
    code, data = difference(linear(), change(), "--json")
    assert (code, json.loads(data)["same"]) == (1, False)
    assert difference(change(), linear())[0] == 1


def test_an_insertion_changes_one_operator(difference: Diff) -> None:
    _, data = difference(linear(), operator_inserted(), "--json")
    (graph,) = json.loads(data)["graphs"]
    operators = graph["operators"]
    assert operators["count"] == {"before": 2, "after": 3, "matched": 2}
    assert [len(operators[key]) for key in ("added", "removed", "changed", "moved")] == [1, 0, 1, 0]
    assert graph["tensors"] == {"changed": [], "renamed": []}


def test_another_order_of_operators(difference: Diff) -> None:
    def branches(order: str) -> Model:
        graph = Graph("main")
        x = graph.input("x", [2])
        both = {name: graph.op({"a": "ABS", "b": "NEG"}[name], [x], [2], name=name) for name in order}
        graph.output(both["a"], both["b"])
        return graph.model()

    code, text = difference(branches("ab"), branches("ba"))
    assert (code, text.splitlines()[-1]) == (1, "  1 operator moved: a")


def test_signatures_over_shared_weights_are_compared_once(difference: Diff) -> None:
    other = decoder()
    for graph in other.graphs:
        table = graph.initializers["embed"]
        assert table.const_value is not None
        table.const_value = ir.Tensor(table.const_value.numpy() * np.float32(2), name="embed")
    _, data = difference(decoder(), formats.loads(formats.dumps(other)), "--json")
    constants = json.loads(data)["constants"]
    assert {entry["name"] for entry in constants["changed"]} == {"embed"}
    assert constants["changed"][0]["distance"]["relative"] == pytest.approx(1)


def test_long_lists_are_cut(difference: Diff) -> None:
    def chain(length: int) -> Model:
        graph = Graph("main")
        value = graph.input("x", [2])
        for _ in range(length):
            value = graph.op("ABS", [value], [2])
        graph.output(value)
        return graph.model()

    _, text = difference(chain(1), chain(31))
    assert "  + 30 operators: 30 ABS" in text
    assert "  ... and 18 more (--all shows them)" in text
    assert difference(chain(1), chain(31), "--all")[1].count("\n  + ABS(") == 30


def test_trouble_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats.save(linear(), tmp_path / "a")
    assert main([str(tmp_path / "a"), str(tmp_path / "missing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "damaged").write_bytes((tmp_path / "a").read_bytes()[:200])
    assert main([str(tmp_path / "a"), str(tmp_path / "damaged")]) == 2
    assert main([str(tmp_path / "a")]) == 2
