"""The record of quantization in a file: one step for each run."""

from __future__ import annotations

import json

import pytest

from o2o.errors import ModelError
from o2o.quantization.metadata import recorded_steps
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from tests.o2o.quantization.models import D, V, language_model
from tests.o2o.quantization.test_quantize import written


def test_what_was_done_is_recorded_each_time() -> None:
    model = language_model()
    quantize(model, find_recipe("dynamic_int8", embedding="float"))
    model = written(model)
    quantize(model, find_recipe("float16"))
    first, second = recorded_steps(written(model))
    assert first["recipe"] == "dynamic_int8"
    assert (first["embedding"], first["tensors"]) == ("float", {"int8": 3})
    assert (second["recipe"], second["tensors"]) == ("float16", {"float16": 1})
    sizes = 4 * (2 * 128 * D + V * D)
    assert first["bytes"][0] == sizes + 4 * V * D
    assert [name for name, _ in model.metadata] == ["o2o.quantization"]


def test_a_record_that_cannot_be_read_is_none() -> None:
    model = language_model()
    for data in (b"", b"[]", b"{}", json.dumps({"steps": 3}).encode()):
        model.metadata = [("o2o.quantization", data)]
        assert recorded_steps(model) == []


def test_a_record_of_a_newer_version_is_refused() -> None:
    model = language_model()
    model.metadata = [("o2o.quantization", b'{"version": 2, "steps": []}')]
    with pytest.raises(ModelError, match=r"o2o\.quantization has version 2; this o2o knows 1: update o2o"):
        recorded_steps(model)
