"""--check of lower.onnx.py finds what is wrong, and nothing else."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.check.onnx import check
from o2o.errors import ModelError
from o2o.formats.onnx_writer import new_model
from o2o.lower.onnx import lower_to_onnx
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from tests.o2o.filters.conftest import Command
from tests.o2o.lower.onnx.decoders import Shape, decoder, plain
from tests.o2o.lower.onnx.running import FORMS

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [Shape(), Shape(layout="BNTH", tied=True), Shape(S=2)])
def test_the_same(shape: Shape, form: str) -> None:
    said = check(decoder(shape), new_model(lower_to_onnx(decoder(shape), form)))
    (worst,) = re.findall(r"within ([\d.e-]+) of", said)
    assert float(worst) < 1e-5


def test_written_by_the_graph_itself() -> None:
    assert "the same" in check(plain(), new_model(lower_to_onnx(plain(), "ort", "all")))


def test_quantized() -> None:
    def model():  # type: ignore[no-untyped-def]
        made = decoder()
        quantize(made, find_recipe("dynamic_int8"))
        return formats.loads(formats.dumps(made))

    assert "the same" in check(model(), new_model(lower_to_onnx(model(), "ort")))


def test_another_weight() -> None:
    lowered = lower_to_onnx(decoder(), "standard")
    value = lowered.graph.initializers["layers.1.down.weight"]
    assert value.const_value is not None
    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
    with pytest.raises(
        ModelError,
        match=r"--check: logits at position 4 differs between ONNX Runtime and numpy by .*; "
        r"the first tensor that differs is layers.1.down, by",
    ):
        check(decoder(), new_model(lowered))


def test_by_flag(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    command = Command("lower_onnx", tmp_path, capsys)
    code, _ = command.run(decoder(), "--check", "--form", "ort")
    assert code == 0
    (_, check) = command.said.splitlines()
    assert check.startswith("lower.onnx.py: checked on ONNX Runtime against numpy: the same, within ")
