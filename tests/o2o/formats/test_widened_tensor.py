"""Constants of other floats as float32: 16 bits without loss, in chunks of any size; 64 bits rounded."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from o2o.formats.tensors import storage_key, with_shape
from o2o.formats.widened_tensor import WidenedTensor

NUMBERS = np.linspace(-3, 3, 35).reshape(5, 7)


@pytest.mark.parametrize("size", [8, 20, 4 << 20])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_nothing_is_lost(size: int, dtype: type) -> None:
    source = ir.Tensor(NUMBERS.astype(dtype))
    tensor = WidenedTensor("w", source)
    assert b"".join(map(bytes, tensor.chunks(size))) == NUMBERS.astype(dtype).astype(np.float32).tobytes()
    np.testing.assert_array_equal(tensor.numpy(), NUMBERS.astype(dtype).astype(np.float32))
    assert tensor.dtype == ir.DataType.FLOAT


def test_another_shape_shares_the_bytes() -> None:
    tensor = WidenedTensor("w", ir.Tensor(NUMBERS.astype(np.float16)))
    flat = with_shape(tensor, (35,), "flat")
    assert storage_key(flat) == storage_key(tensor)
    np.testing.assert_array_equal(flat.numpy(), tensor.numpy().reshape(-1))


def test_float64_is_rounded_and_stays_finite() -> None:
    largest = np.finfo(np.float64).max
    tensor = WidenedTensor("w", ir.Tensor(np.array([0.1, largest, -largest, -np.inf, np.nan])))
    limit = np.finfo(np.float32).max
    np.testing.assert_array_equal(tensor.numpy(), np.float32([0.1, limit, -limit, -np.inf, np.nan]))
