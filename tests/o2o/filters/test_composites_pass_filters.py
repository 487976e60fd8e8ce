"""A model with composites goes through other filters unharmed: what is inside stays and means the same."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import pytest

from o2o import formats
from o2o.formats.tensors import storage_key
from o2o.lower.litert import lower_to_litert
from o2o.lower.litert.composites import ATTENTION, RMS_NORM, wrap_composites
from o2o.model import Model, attribute
from o2o.rewriting.outline import COMPOSITE, decompositions
from tests.o2o import graphs
from tests.o2o.graphs import exported_feeds, operators

Exported = Callable[[str, str], Path]
FORMS = ["static", "prefill_4"]


def wrapped(exported_model: Exported, form: str) -> Model:
    model = lower_to_litert(formats.load(exported_model("grouped", form)))
    assert wrap_composites(model) == {RMS_NORM: 7, ATTENTION: 3}
    return model


class Filters:
    """`filters("gc", model, "--flag")`: the model that the filter of that module makes; `said` on stderr."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.directory, self.capture, self.said = directory, capture, ""

    def run(self, module: str, models: list[Model], *arguments: str) -> Path:
        files = [self.directory / f"{number}.tflite" for number, _ in enumerate(models)]
        for file, model in zip(files, models, strict=True):
            formats.save(model, file)
        target = self.directory / "out"
        main = importlib.import_module(f"o2o.filters.{module}").main
        code = main([*arguments, *map(str, files), "-o", str(target)])
        self.said = self.capture.readouterr().err
        assert code == 0, self.said
        return target

    def __call__(self, module: str, *models: Model, arguments: tuple[str, ...] = ()) -> Model:
        return formats.load(self.run(module, list(models), *arguments))


@pytest.fixture
def filters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Filters:
    return Filters(tmp_path, capsys)


def composites(model: Model) -> list[str]:
    return [attribute(node, "name") for graph in model.graphs for node in graph if node.op_type == COMPOSITE]


def assert_same(exported: Model, before: Model, after: Model) -> None:
    """Equal results of the first signature, whatever its inputs and outputs are called now."""
    given = exported_feeds(exported, 3)
    expected, found = graphs.run(before, given), graphs.run(after, given)
    for one, other in zip(expected.values(), found.values(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_them_is_garbage(exported_model: Exported, filters: Filters, form: str) -> None:
    before = wrapped(exported_model, form)
    after = filters("gc", before)
    assert filters.said == "gc.py: nothing to remove\n"
    assert operators(after) == operators(before)
    assert_same(formats.load(exported_model("grouped", form)), before, after)


def test_what_is_inside_a_dead_one_is_garbage(exported_model: Exported, filters: Filters) -> None:
    model = wrapped(exported_model, "static")
    keys = [value for value in model.graphs[0].outputs if (value.name or "").startswith("present")]
    model.graphs[0].outputs[:] = keys[:2]  # of the first layer: all behind it is dead
    model.signatures[0].outputs = {value.name or "": value for value in keys[:2]}
    after = filters("gc", model)
    assert composites(after) == [RMS_NORM]
    assert len(after.graphs) == 2


def test_two_files_are_merged(exported_model: Exported, filters: Filters) -> None:
    """Both call their graphs inside alike, and their weights are the same."""
    models = [wrapped(exported_model, form) for form in FORMS]
    sizes = [len(formats.dumps(model)) for model in models]
    merged = filters("merge_circles", *models)
    assert composites(merged) == [*composites(models[0]), *composites(models[1])]
    names = [graph.name for graph in merged.graphs]
    assert len(set(names)) == len(names) == 2 + 2 * 10
    assert len(decompositions(merged)) == 2 * 10
    assert len(formats.dumps(merged)) < 0.7 * sum(sizes)
    for index, form in enumerate(FORMS):
        exported = formats.load(exported_model("grouped", form))
        given = exported_feeds(exported, 3)
        signature = merged.signatures[index]
        expected = graphs.run(wrapped(exported_model, form), given)
        found = graphs.run(merged, given, signature.graph)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def large(model: Model) -> set[Hashable]:
    """The storages of weights, wherever they are used."""
    tensors = (v.const_value for graph in model.graphs for v in graph.initializers.values())
    return {storage_key(tensor) for tensor in tensors if tensor is not None and tensor.nbytes > 100}


def test_merged_models_are_wrapped(exported_model: Exported, filters: Filters) -> None:
    """Each signature gets its own, over the weights that they share."""
    merged = filters(
        "merge_circles", *(lower_to_litert(formats.load(exported_model("grouped", form))) for form in FORMS)
    )
    weights = len(large(merged))
    assert wrap_composites(merged) == {RMS_NORM: 14, ATTENTION: 6}
    after = formats.loads(formats.dumps(merged))
    assert len(large(after)) == weights
    for index, form in enumerate(FORMS):
        exported = formats.load(exported_model("grouped", form))
        given = exported_feeds(exported, 3)
        expected = graphs.run(wrapped(exported_model, form), given)
        found = graphs.run(after, given, after.signatures[index].graph)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)


def test_they_are_told(exported_model: Exported, filters: Filters) -> None:
    model = wrapped(exported_model, "static")
    text = filters.run("inspect", [model]).read_text()
    assert "STABLEHLO_COMPOSITE 10" in text
    assert f"'{ATTENTION}.impl_0', run by STABLEHLO_COMPOSITE of decode" in text
    description = json.loads(filters.run("inspect", [model], "--json").read_text())
    assert len(description["graphs"]) == 11


def test_caches_are_turned_around_them(exported_model: Exported, filters: Filters) -> None:
    before = wrapped(exported_model, "static")
    after = filters("transpose_io_kvcache", before)
    assert composites(after) == composites(before)
    given = exported_feeds(formats.load(exported_model("grouped", "static")), 3)
    expected = graphs.run(before, given)
    transposed = {
        name: array.transpose(0, 2, 1, 3) if name.startswith("past") else array
        for name, array in given.items()
    }
    found = graphs.run(after, transposed)
    for name, array in expected.items():
        other = found[name].transpose(0, 2, 1, 3) if name.startswith("present") else found[name]
        np.testing.assert_array_equal(other, array)


def test_weights_are_quantized_around_them(exported_model: Exported, filters: Filters) -> None:
    """The weights of norms, which are small, stay as they are."""
    before = wrapped(exported_model, "static")
    after = filters("quantize_weights", before, arguments=("--recipe", "dynamic_int8"))
    assert composites(after) == composites(before)
    given = exported_feeds(formats.load(exported_model("grouped", "static")), 3)
    expected, found = graphs.run(before, given)["logits"], graphs.run(after, given)["logits"]
    assert not np.array_equal(found, expected)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
