"""Packed weights compute what the weights compute."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from o2o import formats
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from runtime_py.engines.model_file import ModelFile
from tests.o2o.lower.onnx.decoders import Shape, decoder

pytest.importorskip("onnxruntime")
from runtime_py.engines.onnx.engine import OnnxEngine
from runtime_py.engines.onnx.lowered_file import lower_file
from runtime_py.engines.onnx.pack import lower_and_pack


@pytest.mark.parametrize("row_exact", [False, True])
@pytest.mark.parametrize("D", [64, 128])
def test_small_int8_matrices(D: int, row_exact: bool, tmp_path: Path) -> None:
    """Their scales are too small for the data file, so that ONNX Runtime aligns nothing behind them."""
    model = decoder(Shape(D=D, S=9))
    quantize(model, find_recipe("dynamic_int8"))
    file, plain, entry = (tmp_path / name for name in ("model.circle", "plain.onnx", "entry"))
    formats.save(model, file)
    lower_file(ModelFile(file), plain, row_exact)
    entry.mkdir()
    lower_and_pack(file, entry, row_exact)
    logits = []
    for path in (plain, entry / "model.onnx"):
        with closing(OnnxEngine(path, origin=path)) as engine:
            logits.append(engine.open_session().prefill([1, 2, 3]))
    assert np.array_equal(*logits)
    assert np.isfinite(logits[0]).all()
