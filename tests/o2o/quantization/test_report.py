"""The report of a quantization, as JSON and as one line."""

from __future__ import annotations

import json

from o2o import formats
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from o2o.quantization.report import report, summary
from tests.o2o.quantization.models import language_model


def test_a_report() -> None:
    model = language_model()
    recipe = find_recipe("dynamic_int8", embedding="float")
    results = quantize(model, recipe)
    formats.dumps(model)  # errors are known once the tensors are written
    contents = json.loads(json.dumps(report(recipe, results)))
    assert (contents["recipe"], contents["embedding"], contents["head"]) == ("dynamic_int8", "float", "int8")
    assert contents["bytes"] == [sum(entry["bytes"][i] for entry in contents["tensors"]) for i in (0, 1)]
    quantized = [entry for entry in contents["tensors"] if entry["scheme"] == "int8"]
    unchanged = [entry for entry in contents["tensors"] if entry["scheme"] == "float"]
    assert (len(quantized), len(unchanged)) == (3, 1)
    assert all("reason" not in entry and 0 < entry["error"]["rms"] < 0.01 for entry in quantized)
    assert [entry["reason"] for entry in unchanged] == ["the recipe has no scheme for it"]
    assert max(entry["error"]["max"] for entry in quantized) >= contents["error"]["max"]
    line = summary(contents)
    assert line.startswith("dynamic_int8: 3 to int8 (1 unchanged), ")
    assert line.endswith("of the largest number")


def test_nothing_to_quantize() -> None:
    recipe = find_recipe("none")
    assert summary(report(recipe, [])) == "the model has no float weights"
    unchanged = summary(report(recipe, quantize(language_model(), recipe)))
    assert unchanged == "4 tensors not quantized: the recipe has no scheme for it"
