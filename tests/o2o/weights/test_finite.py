"""Weights that are not finite are named when they are read, and numbers that a smaller dtype cannot hold."""

from __future__ import annotations

import io
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from o2o.errors import ModelError
from o2o.weights.checkpoint_tensor import CheckpointTensor
from o2o.weights.finite import ALLOW, all_finite, cast
from o2o.weights.stored_tensor import StoredTensor
from o2o.weights.weight_source import BLOCK

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
OFFSET = 8


def stored(folder: Path, numbers: np.ndarray, dtype: str = "F32") -> StoredTensor:
    raw = numbers.astype(DTYPES[dtype]).tobytes()
    (folder / "file").write_bytes(bytes(OFFSET) + raw)
    return StoredTensor("w", folder / "file", dtype, numbers.shape, OFFSET, len(raw))


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_all_finite_numbers_of_a_dtype(dtype):
    largest = ml_dtypes.finfo(dtype).max
    numbers = np.array([0, -0.0, 1, largest, -largest, ml_dtypes.finfo(dtype).smallest_subnormal], dtype)
    assert all_finite(numbers)
    assert all_finite(numbers[:0])
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        assert not all_finite(np.append(numbers, np.array([value], dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("to", [FLOAT, FLOAT16, BFLOAT16])
def test_they_are_named_with_their_number_and_the_first(tmp_path, dtype, to):
    numbers = np.zeros((3, 5), np.float32)
    numbers[1, 2], numbers[1, 4], numbers[2, 0] = np.nan, np.inf, -np.inf
    weight = CheckpointTensor("graph's name", stored(tmp_path, numbers, dtype), to)
    message = r"file: w has 3 numbers that are not finite, the first is nan at \[1, 2\]"
    with pytest.raises(ModelError, match=message):
        weight.tofile(io.BytesIO())
    with pytest.raises(ModelError, match=message):
        weight.tobytes()


def test_in_a_later_block(tmp_path):
    numbers = np.zeros((2, BLOCK), np.float32)
    numbers[1, 7] = -np.inf
    message = r"1 number that is not finite, the first is -inf at \[1, 7\]"
    with open(tmp_path / "out", "wb") as file, pytest.raises(ModelError, match=message):
        CheckpointTensor("w", stored(tmp_path, numbers), FLOAT).tofile(file)


def test_a_user_may_insist(tmp_path, monkeypatch):
    numbers = np.array([[1, np.nan, 1e30, -np.inf]], np.float32)
    monkeypatch.setenv(ALLOW, "1")
    for to, dtype in ((FLOAT, np.float32), (FLOAT16, np.float16)):
        sink = io.BytesIO()
        CheckpointTensor("w", stored(tmp_path, numbers), to).tofile(sink)
        with np.errstate(over="ignore"):
            expected = numbers.astype(dtype)
        np.testing.assert_array_equal(np.frombuffer(sink.getvalue(), dtype), expected[0])


@pytest.mark.parametrize(("dtype", "value"), [("F32", 70000.0), ("BF16", -(2.0**17)), ("F64", 65520.0)])
def test_numbers_beyond_float16(tmp_path, dtype, value):
    numbers = np.array([1.0, value, 2.0])
    with pytest.raises(
        ModelError, match=rf"w has {value:g}, which does not fit float16: store it as float32"
    ):
        CheckpointTensor("w", stored(tmp_path, numbers, dtype), FLOAT16).tobytes()
    assert np.isfinite(
        np.frombuffer(CheckpointTensor("w", stored(tmp_path, numbers, dtype), FLOAT).tobytes(), np.float32)
    ).all()


def test_numbers_beyond_float32(tmp_path):
    with pytest.raises(ModelError, match=r"w has 1e\+300, which does not fit float32"):
        stored(tmp_path, np.array([1e300]), "F64").read_float32()
    large = np.array([3.4e38], np.float32)  # rounds to infinity
    with pytest.raises(ModelError, match="does not fit bfloat16"):
        cast(large, np.dtype(ml_dtypes.bfloat16), tmp_path, "w")


def test_whole_tensors_of_every_size(tmp_path):
    for shape in ((), (0,), (1,), (BLOCK + 3,)):
        numbers = np.ones(shape, np.float32)
        assert CheckpointTensor("w", stored(tmp_path, numbers), FLOAT).tobytes() == numbers.tobytes()
    with pytest.raises(ModelError, match=r"w has 1 number that is not finite, the first is nan at \[\]"):
        stored(tmp_path, np.array(np.nan)).read_float32()
