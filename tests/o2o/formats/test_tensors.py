"""Constants as bytes: in memory, in a source, converted on the way; the same bytes in other shapes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.formats.schema import Span
from o2o.formats.tensors import (
    SourceTensor,
    bytes_in_memory,
    can_share_bytes,
    chunks,
    constant,
    constant_array,
    storage_key,
    with_shape,
)
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.streams import MemorySource, Source, open_file
from o2o.weights.checkpoint_tensor import CheckpointTensor
from o2o.weights.stored_tensor import StoredTensor
from tests.o2o.graphs import Graph

DATA = bytes(range(256)) * 40
PLACE = 256  # of the constants in it; aligned, as in any file of ours

FLOAT, INT4, STRING = ir.DataType.FLOAT, ir.DataType.INT4, ir.DataType.STRING
BOOL, BFLOAT16 = ir.DataType.BOOL, ir.DataType.BFLOAT16

DTYPES = [
    *(FLOAT, BOOL, BFLOAT16, INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.INT64),
    *(ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.COMPLEX64, ir.DataType.FLOAT8E5M2),
]


@pytest.fixture(params=["memory", "file"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    if request.param == "memory":
        return MemorySource(DATA)
    (tmp_path / "data").write_bytes(DATA)
    return open_file(tmp_path / "data")


def stored(source: Source, dtype: ir.DataType | None, *shape: int, size: int | None = None) -> SourceTensor:
    if size is None:
        assert dtype is not None
        size = -(-int(np.prod(shape)) * dtype.bitwidth // 8)
    return SourceTensor(source, Span(PLACE, size), dtype, shape, "w")


def all_bytes(tensor: ir.TensorProtocol) -> list[bytes]:
    """The bytes of `tensor` in each of the ways that there are to have them."""
    sink = io.BytesIO()
    tensor.tofile(sink)  # type: ignore[attr-defined]
    return [tensor.tobytes(), sink.getvalue(), b"".join(map(bytes, chunks(tensor, 7)))]


@pytest.mark.parametrize("shape", [(3, 5), (15,), (1, 15, 1), (2, 2, 2), (1,), (), (0, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_of_every_dtype(dtype: ir.DataType, shape: tuple[int, ...], source: Source) -> None:
    tensor = stored(source, dtype, *shape)
    there = tensor.span.size
    raw = np.frombuffer(DATA, np.uint8, there, PLACE)
    expected = constant(raw, dtype, shape, "w")
    assert (tensor.dtype, tuple(tensor.shape.numpy()), tensor.nbytes) == (dtype, shape, there)
    assert all_bytes(tensor) == [DATA[PLACE : PLACE + there]] * 3
    assert tensor.numpy().shape == shape
    assert tensor.numpy().tobytes() == expected.numpy().tobytes()


def test_numbers_of_four_bits(source: Source) -> None:
    """The first is in the lower half of a byte; a half that is left over belongs to nobody."""
    tensor = SourceTensor(source, Span(PLACE + 0x21, 2), INT4, (3,), "w")  # bytes 0x21, 0x22
    assert np.asarray(tensor.numpy(), np.int8).tolist() == [1, 2, 2]


@pytest.mark.parametrize(
    ("dtype", "size", "shape"),
    [(None, 18, (3, 4)), (STRING, 30, (2,)), (FLOAT, 8, (3, 4)), (INT4, 3, (3,)), (BOOL, 4, (5,))],
    ids=["block type", "strings", "sparse", "padded", "short"],
)
def test_encoded_bytes_are_bytes(
    dtype: ir.DataType | None, size: int, shape: tuple[int, ...], source: Source
) -> None:
    """What does not spell the tensor's numbers is kept as it is, and never read as if it did."""
    tensor = stored(source, dtype, *shape, size=size)
    assert (tensor.dtype, list(tensor.shape.numpy())) == (ir.DataType.UINT8, [size])
    assert all_bytes(tensor) == [DATA[PLACE : PLACE + size]] * 3
    value = ir.Value(
        name="w",
        shape=ir.Shape(shape),
        type=None if dtype is None else ir.TensorType(dtype),
        const_value=tensor,
    )
    assert constant_array(value) is None
    assert with_shape(tensor, (size,), "v").tobytes() == tensor.tobytes()


# --- other shapes ----------------------------------------------------------------------------------------


def in_source(tmp_path: Path) -> ir.TensorProtocol:
    return stored(MemorySource(DATA), FLOAT, 4, 6)


def in_memory(tmp_path: Path) -> ir.TensorProtocol:
    return ir.Tensor(np.arange(24, dtype=np.float32).reshape(4, 6), name="w")


def packed(tmp_path: Path) -> ir.TensorProtocol:
    return constant(np.arange(12, dtype=np.uint8), INT4, (4, 6), "w")


def transposed(tmp_path: Path) -> ir.TensorProtocol:
    return ir.Tensor(np.arange(24, dtype=np.float32).reshape(6, 4).T, name="w")


def of_a_checkpoint(tmp_path: Path) -> ir.TensorProtocol:
    (tmp_path / "w").write_bytes(np.arange(24, dtype=np.float16).tobytes())
    return CheckpointTensor("w", StoredTensor("w", tmp_path / "w", "F16", (4, 6), 0, 48), FLOAT)


@pytest.mark.parametrize("make", [in_source, in_memory, packed, transposed, of_a_checkpoint])
def test_the_same_bytes_in_another_shape(make: Callable[[Path], ir.TensorProtocol], tmp_path: Path) -> None:
    tensor = make(tmp_path)
    other = with_shape(tensor, (2, 1, 12), "other")
    assert (other.name, list(other.shape.numpy()), other.dtype) == ("other", [2, 1, 12], tensor.dtype)
    np.testing.assert_array_equal(
        np.asarray(other.numpy(), np.float32), np.asarray(tensor.numpy(), np.float32).reshape(2, 1, 12)
    )
    assert other.tobytes() == tensor.tobytes()
    assert (storage_key(other) == storage_key(tensor)) == can_share_bytes(tensor)
    assert can_share_bytes(tensor) == (make is not transposed)


def test_a_reference_keeps_to_its_tensor(tmp_path: Path) -> None:
    reference = UnboundTensor("w", tmp_path / "nowhere", "w", FLOAT, (4, 6))
    other = with_shape(reference, (24,), "flat")
    assert isinstance(other, UnboundTensor)
    assert storage_key(other) == storage_key(reference)
    assert (other.stored_shape, list(other.shape.numpy())) == ((4, 6), [24])
    half = UnboundTensor("w", tmp_path / "nowhere", "w", ir.DataType.FLOAT16, (4, 6))
    assert storage_key(half) != storage_key(reference), "other bytes are written for it"


@pytest.mark.parametrize("make", [in_source, in_memory])
def test_the_same_bytes_as_another_dtype(make: Callable[[Path], ir.TensorProtocol], tmp_path: Path) -> None:
    tensor = make(tmp_path)
    other = with_shape(tensor, (48,), "other", BFLOAT16)
    assert (other.dtype, other.tobytes()) == (BFLOAT16, tensor.tobytes())
    np.testing.assert_array_equal(other.numpy().view(np.uint16), np.frombuffer(tensor.tobytes(), np.uint16))


# --- where bytes are -------------------------------------------------------------------------------------


def test_what_is_in_memory_as_it_is_written() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(bytes_in_memory(ir.Tensor(array)), array)  # type: ignore[arg-type]
    assert bytes_in_memory(ir.Tensor(array.T)) is None
    assert bytes_in_memory(stored(MemorySource(DATA), FLOAT, 4)) is None


def test_four_bits_that_numpy_spreads_over_bytes_are_packed() -> None:
    """ml_dtypes' int4 takes a byte for each number in memory, and half of one in a file."""
    array = np.array([1, 2, 3, -4, 5], ml_dtypes.int4)
    tensor = ir.Tensor(array, INT4, name="w")
    assert bytes_in_memory(tensor) is None
    graph = Graph("main")
    value = ir.Value(name="w", shape=ir.Shape([5]), type=ir.TensorType(INT4), const_value=tensor)
    graph.ir.register_initializer(value)
    graph.output(value)
    again = formats.loads(formats.dumps(graph.model())).graphs[0].initializers["w"].const_value
    assert again is not None
    assert np.asarray(again.numpy(), np.int8).tolist() == [1, 2, 3, -4, 5]


def test_keys_tell_storages_apart() -> None:
    array = np.arange(8, dtype=np.float32)
    source, other = MemorySource(DATA), MemorySource(DATA)
    same = [
        (ir.Tensor(array), ir.Tensor(array.reshape(2, 4))),
        (stored(source, FLOAT, 4), stored(source, BFLOAT16, 8)),
    ]
    different = [
        (ir.Tensor(array), ir.Tensor(array.copy())),
        (ir.Tensor(array), ir.Tensor(array[:4])),
        (stored(source, FLOAT, 4), stored(source, FLOAT, 5)),
        (stored(source, FLOAT, 4), stored(other, FLOAT, 4)),
    ]
    assert all(storage_key(a) == storage_key(b) for a, b in same)
    assert all(storage_key(a) != storage_key(b) for a, b in different)
