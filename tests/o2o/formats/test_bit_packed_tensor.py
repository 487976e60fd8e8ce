"""Packed unsigned integers as signed ones: in chunks of any size, for each number of bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from o2o.formats.bit_packed_tensor import BitPackedTensor
from o2o.formats.tensors import storage_key, with_shape


@pytest.mark.parametrize("size", [1, 40, 4 << 20])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_integers_less_the_middle(bits: int, size: int) -> None:
    q = np.random.default_rng(bits).integers(0, 1 << bits, (5, 32)).astype(np.uint8)
    flat = np.unpackbits(q[..., None], axis=-1, bitorder="little")[..., :bits].reshape(5, -1)
    packed = np.packbits(flat, axis=-1, bitorder="little")
    tensor = BitPackedTensor("w", ir.Tensor(packed), bits, (5, 32))
    assert tensor.dtype == (ir.DataType.INT4 if bits <= 4 else ir.DataType.INT8)
    np.testing.assert_array_equal(tensor.numpy().astype(int), q.astype(int) - (1 << (bits - 1)))
    assert b"".join(map(bytes, tensor.chunks(size))) == tensor.tobytes()


def test_the_same_bytes_have_the_same_key() -> None:
    packed = ir.Tensor(np.arange(64, dtype=np.uint8).reshape(4, 16))
    matrix = BitPackedTensor("w", packed, 4, (4, 32))
    rows = BitPackedTensor("rows", packed, 4, (4, 16), ir.DataType.UINT8)
    assert storage_key(matrix) == storage_key(rows) == storage_key(with_shape(matrix, (128,), "flat"))
    assert storage_key(matrix) != storage_key(BitPackedTensor("w", packed, 8, (4, 16)))
    assert matrix.tobytes() == rows.tobytes()
