"""A transposed constant: its bytes in chunks of any size, and what identifies them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from o2o.formats.tensors import storage_key, with_shape
from o2o.formats.transposed_tensor import TransposedTensor

MATRIX = np.arange(35, dtype=np.float32).reshape(5, 7)


@pytest.mark.parametrize("size", [1, 20, 21, 64, 4 << 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_chunks_are_the_bytes_of_the_transpose(size: int, dtype: type) -> None:
    tensor = TransposedTensor("w", ir.Tensor(MATRIX.astype(dtype)))
    chunks = [bytes(chunk) for chunk in tensor.chunks(size)]
    assert b"".join(chunks) == MATRIX.astype(dtype).T.tobytes()
    assert max(map(len, chunks)) <= max(size, 5 * np.dtype(dtype).itemsize)
    np.testing.assert_array_equal(tensor.numpy(), MATRIX.astype(dtype).T)


@pytest.mark.parametrize("size", [1, 20, 4 << 20])
def test_two_integers_of_4_bits_share_a_byte(size: int) -> None:
    integers = (np.arange(42).reshape(6, 7) % 16 - 8).astype(ml_dtypes.int4)
    tensor = TransposedTensor("w", ir.Tensor(integers, ir.DataType.INT4))
    assert (
        b"".join(map(bytes, tensor.chunks(size))) == ir.Tensor(integers.T.copy(), ir.DataType.INT4).tobytes()
    )
    np.testing.assert_array_equal(tensor.numpy(), integers.T)


def test_equal_keys_are_equal_bytes() -> None:
    matrix = ir.Tensor(MATRIX)
    tensor = TransposedTensor("w", matrix)
    assert storage_key(tensor) == storage_key(TransposedTensor("other", matrix))
    assert storage_key(tensor) != storage_key(matrix)
    turned = TransposedTensor("w", with_shape(matrix, (7, 5), "w"))
    assert storage_key(tensor) != storage_key(turned), "the same bytes, other axes"
    flat = with_shape(tensor, (35,), "flat")
    assert storage_key(flat) == storage_key(tensor)
    np.testing.assert_array_equal(flat.numpy(), MATRIX.T.reshape(-1))
