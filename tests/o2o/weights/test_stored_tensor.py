"""A tensor of a checkpoint's file: its numbers as float32, in chunks of any size."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from o2o.errors import ModelError
from o2o.weights.stored_tensor import StoredTensor
from tests.o2o.graphs import weights

NUMBERS = weights(5, 7)
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}
OFFSET = 24


def stored(folder: Path, dtype: str) -> StoredTensor:
    raw = NUMBERS.astype(DTYPES[dtype]).tobytes()
    (folder / "file").write_bytes(bytes(OFFSET) + raw + b"more")
    return StoredTensor("w", folder / "file", dtype, NUMBERS.shape, OFFSET, len(raw))


@pytest.mark.parametrize("size", [1, 4, 35, 1 << 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_in_chunks(dtype: str, size: int, tmp_path: Path) -> None:
    expected = NUMBERS.astype(DTYPES[dtype]).astype(np.float32)
    tensor = stored(tmp_path, dtype)
    chunks = list(tensor.chunks(size))
    assert max(len(chunk) for chunk in chunks) <= size
    np.testing.assert_array_equal(np.concatenate(chunks).reshape(5, 7), expected)
    np.testing.assert_array_equal(tensor.read_float32(), expected)


def test_equal_numbers_have_one_digest(tmp_path: Path) -> None:
    half = NUMBERS.astype(np.float16).astype(np.float32)
    (tmp_path / "half").write_bytes(half.tobytes())
    wide = StoredTensor("w", tmp_path / "half", "F32", (5, 7), 0, half.nbytes)
    assert stored(tmp_path, "F16").digest() == wide.digest() != stored(tmp_path, "F32").digest()


def test_integers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4))
    with pytest.raises(ModelError, match="w is stored as I8, not as a float"):
        StoredTensor("w", tmp_path / "file", "I8", (4,), 0, 4).read_float32()


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    tensor = stored(tmp_path, "F32")
    (tmp_path / "file").write_bytes(bytes(OFFSET + 8))
    with pytest.raises(ModelError, match="the file became shorter while it was read"):
        tensor.read_float32()
