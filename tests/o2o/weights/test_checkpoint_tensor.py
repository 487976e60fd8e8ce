"""A checkpoint's tensor as a constant: it is converted while it is written."""

from __future__ import annotations

import io
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from o2o.errors import ModelError
from o2o.weights.checkpoint_tensor import CheckpointTensor
from o2o.weights.safetensors import read_header
from tests.o2o.weights.test_binding import FLOAT, NUMBERS, checkpoint


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_a_weight_is_converted_as_it_is_written(
    stored: torch.dtype, dtype: ir.DataType, tmp_path: Path
) -> None:
    weight = CheckpointTensor("w", read_header(checkpoint(tmp_path, stored))["w"], dtype)
    there = {FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}.get(dtype, torch.bfloat16)
    expected = NUMBERS.to(stored).float().to(there).view(torch.uint8).numpy().tobytes()
    sink = io.BytesIO()
    weight.tofile(sink)
    assert sink.getvalue() == expected == weight.tobytes()
    assert b"".join(weight.chunks(1000)) == expected
    with open(tmp_path / "out", "wb") as file:
        weight.tofile(file)
    assert (tmp_path / "out").read_bytes() == expected
    assert weight.nbytes == len(expected)


def test_a_weight_must_become_a_float(tmp_path: Path) -> None:
    stored = read_header(checkpoint(tmp_path, i=torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(ModelError, match="i is stored as I64"):
        CheckpointTensor("i", stored["i"], FLOAT)
    with pytest.raises(ModelError, match="cannot store weight w as INT8: use float32"):
        CheckpointTensor("w", stored["w"], ir.DataType.INT8)
