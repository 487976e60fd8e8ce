"""Constants concatenated along their first axis: bytes, shapes, and which of them fit."""

from __future__ import annotations

import io

import numpy as np
import onnx_ir as ir

from o2o.formats.concatenated_tensor import ConcatenatedColumns, ConcatenatedTensor
from o2o.formats.schema import Span
from o2o.formats.tensors import SourceTensor, storage_key, with_shape
from o2o.streams import MemorySource
from tests.o2o.graphs import weights

FIRST, SECOND = weights(3, 4), weights(5, 4, seed=1)
EXPECTED = np.concatenate([FIRST, SECOND])


def parts() -> list[ir.TensorProtocol]:
    """One in memory, one in a source."""
    source = MemorySource(bytes(64) + SECOND.tobytes())
    return [ir.Tensor(FIRST), SourceTensor(source, Span(64, SECOND.nbytes), ir.DataType.FLOAT, (5, 4), "b")]


def test_rows_follow_each_other() -> None:
    tensor = ConcatenatedTensor("w", parts())
    assert (tensor.name, tuple(tensor.shape.numpy()), tensor.dtype) == ("w", (8, 4), ir.DataType.FLOAT)
    np.testing.assert_array_equal(tensor.numpy(), EXPECTED)
    sink = io.BytesIO()
    tensor.tofile(sink)
    assert sink.getvalue() == b"".join(tensor.chunks(7)) == EXPECTED.tobytes()


def test_another_shape_has_the_same_storage() -> None:
    tensor = ConcatenatedTensor("w", parts())
    flat = with_shape(tensor, (32,), "flat")
    assert storage_key(flat) == storage_key(tensor)
    np.testing.assert_array_equal(flat.numpy(), EXPECTED.reshape(-1))


def test_other_dtypes_and_columns_do_not_fit() -> None:
    float32 = ir.Tensor(FIRST)
    assert ConcatenatedTensor.fit([float32, ir.Tensor(SECOND)])
    assert not ConcatenatedTensor.fit([float32, ir.Tensor(SECOND.astype(np.float16))])
    assert not ConcatenatedTensor.fit([float32, ir.Tensor(weights(3, 5))])


def test_odd_halves_of_bytes_do_not_fit() -> None:
    odd = ir.PackedTensor(np.zeros(2, np.uint8), ir.DataType.INT4, shape=ir.Shape([1, 3]), name="odd")
    even = ir.PackedTensor(np.zeros(3, np.uint8), ir.DataType.INT4, shape=ir.Shape([2, 3]), name="even")
    assert not ConcatenatedTensor.fit([odd, even])
    assert ConcatenatedTensor.fit([even, even])


def test_columns_stand_beside_each_other() -> None:
    one, other = ir.Tensor(weights(5, 2)), parts()[1]
    tensor = ConcatenatedColumns("w", [one, other])
    expected = np.concatenate([one.numpy(), SECOND], axis=1)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    assert b"".join(tensor.chunks(50)) == expected.tobytes()
    assert storage_key(tensor) != storage_key(ConcatenatedColumns("w", [other, one]))
    assert ConcatenatedColumns.fit([one, other])
    assert not ConcatenatedColumns.fit([one, ir.Tensor(FIRST)])
    assert not ConcatenatedColumns.fit([ir.Tensor(weights(5)), ir.Tensor(weights(5))])
