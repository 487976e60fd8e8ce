"""Equal constants share their bytes, wherever these are; others do not, however alike they look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2o import formats
from o2o.formats.schema import Span
from o2o.formats.tensors import SourceTensor, chunks, constant, storage_key
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model
from o2o.rewriting.deduplicate_constants import SAMPLE, deduplicate_constants
from o2o.streams import MemorySource, open_file
from o2o.streams.source import PipeSource
from o2o.weights.checkpoint_tensor import CheckpointTensor
from o2o.weights.stored_tensor import StoredTensor
from tests.o2o.graphs import Graph, weights
from tests.o2o.streams.test_source import piped

FLOAT = ir.DataType.FLOAT
ARRAY = weights(60, 40)  # more than a sample
OTHER = np.concatenate([ARRAY.reshape(-1)[:-1], np.float32([7])]).reshape(60, 40)  # differs at its end


def model_of(*tensors: ir.TensorProtocol) -> Model:
    """Two graphs, whose constants `w0`, `w1`, ... are by turns in the one and the other."""
    graphs = [Graph("first"), Graph("second")]
    for index, tensor in enumerate(tensors):
        value = ir.Value(
            name=f"w{index}", shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graphs[index % 2].ir.register_initializer(value)
        graphs[index % 2].output(value)
    return graphs[0].model(graphs[1])


def tensors_of(model: Model) -> dict[str, ir.TensorProtocol]:
    collected = {
        value.name: value.const_value for graph in model.graphs for value in graph.initializers.values()
    }
    return {name: tensor for name, tensor in collected.items() if name and tensor is not None}


def groups(model: Model) -> list[list[str]]:
    """The names of the constants that share each storage."""
    collected: dict[object, list[str]] = {}
    for name, tensor in sorted(tensors_of(model).items()):
        collected.setdefault(storage_key(tensor), []).append(name)
    return list(collected.values())


def shared(*tensors: ir.TensorProtocol, only: type = object) -> list[list[str]]:
    """What shares what then; checks that each is still what it was, and is written so."""
    model = model_of(*tensors)
    before = {name: (list(t.shape.numpy()), t.dtype, t.tobytes()) for name, t in tensors_of(model).items()}
    count, number, saved = deduplicate_constants(model, only)
    assert count == len({storage_key(tensor) for tensor in tensors})
    assert count - number == len(groups(model))
    assert (saved > 0) == (number > 0)
    collected = tensors_of(model)
    assert {n: (list(t.shape.numpy()), t.dtype, t.tobytes()) for n, t in collected.items()} == before
    again = tensors_of(formats.loads(formats.dumps(model)))
    assert {name: tensor.tobytes() for name, tensor in again.items()} == {
        n: b for n, (*_, b) in before.items()
    }
    return groups(model)


def in_memory(array: np.ndarray) -> ir.TensorProtocol:
    return ir.Tensor(array.copy(), name="memory")


def in_source(array: np.ndarray, at: int = 0) -> SourceTensor:
    source = MemorySource(bytes(at) + array.tobytes())
    return SourceTensor(source, Span(at, array.nbytes), FLOAT, array.shape, "stored")


def in_pipe(array: np.ndarray) -> SourceTensor:
    """Where it is in a model's file that comes through a pipe."""
    model = formats.read(PipeSource(piped(formats.dumps(model_of(in_memory(array)))), "pipe"))
    collected = tensors_of(model)["w0"]
    assert isinstance(collected, SourceTensor)
    return collected


def of_checkpoint(folder: Path, array: np.ndarray, kind: str = "F32", name: str = "w") -> CheckpointTensor:
    numbers = {"F32": array, "F16": array.astype(np.float16)}[kind]
    path = folder / f"{name}.{kind}"
    path.write_bytes(numbers.tobytes())
    return CheckpointTensor(name, StoredTensor(name, path, kind, array.shape, 0, numbers.nbytes), FLOAT)


def test_everywhere_but_in_a_checkpoint(tmp_path: Path) -> None:
    everywhere = [
        in_memory(ARRAY),
        in_source(ARRAY),
        in_source(ARRAY, at=64),
        in_pipe(ARRAY),
        ir.Tensor(np.ascontiguousarray(ARRAY.T).T, name="turned"),
        ir.LazyTensor(lambda: ir.Tensor(ARRAY), FLOAT, ir.Shape(ARRAY.shape), name="lazy"),
    ]
    assert shared(*everywhere) == [["w0", "w1", "w2", "w3", "w4", "w5"]]
    turned_first = [everywhere[4], everywhere[0], everywhere[5]]
    assert shared(*turned_first) == [["w0", "w1", "w2"]]


@pytest.mark.parametrize("make", [in_memory, in_source, in_pipe])
def test_what_begins_alike_is_not_equal(make, tmp_path: Path) -> None:
    assert ARRAY.tobytes()[:SAMPLE] == OTHER.tobytes()[:SAMPLE]
    assert shared(make(ARRAY), make(OTHER), make(ARRAY)) == [["w0", "w2"], ["w1"]]


def test_a_matrix_and_its_transpose_are_not_equal() -> None:
    square = weights(50, 50)
    assert shared(in_memory(square), ir.Tensor(square.T, name="turned")) == [["w0"], ["w1"]]


def test_bytes_count_and_not_shapes_or_dtypes() -> None:
    raw = ARRAY.tobytes()
    tensors = [
        in_memory(ARRAY),
        in_source(ARRAY.reshape(-1)),
        in_memory(ARRAY.view(np.int32)),
        constant(np.frombuffer(raw, np.uint8), ir.DataType.INT4, (len(raw) * 2,), "packed"),
    ]
    assert shared(*tensors) == [["w0", "w1", "w2", "w3"]]


def test_encoded_bytes_share_too() -> None:
    """Those of strings, say, which a value has under a dtype and a shape of its own."""
    words = np.frombuffer(np.int32([1, 12, 17]).tobytes() + b"hello", np.uint8)
    graph = Graph("main")
    for name in ("a", "b"):
        graph.output(graph.raw_constant(name, words.tobytes(), [1], ir.DataType.STRING))
    graph.output(graph.constant("c", words))
    model = graph.model()
    before = formats.dumps(model)
    assert deduplicate_constants(model) == (3, 2, 2 * words.nbytes)
    assert len(groups(model)) == 1
    collected = formats.loads(formats.dumps(model)).graphs[0].initializers
    expected = formats.loads(before).graphs[0].initializers
    for name in ("a", "b", "c"):
        assert (collected[name].dtype, collected[name].shape) == (expected[name].dtype, expected[name].shape)
        assert collected[name].const_value.tobytes() == words.tobytes()  # type: ignore[union-attr]


def test_weights_share_what_they_become(tmp_path: Path) -> None:
    rounded = ARRAY.astype(np.float16).astype(np.float32)
    tensors = [
        of_checkpoint(tmp_path, rounded, "F32", "a"),
        of_checkpoint(tmp_path, rounded, "F16", "b"),
        of_checkpoint(tmp_path, rounded, "F16", "c").with_shape((2400,), "flat"),
        of_checkpoint(tmp_path, OTHER, "F32", "d"),
    ]
    assert shared(*tensors) == [["w0", "w1", "w2"], ["w3"]]
    half = CheckpointTensor("e", tensors[0].stored, ir.DataType.FLOAT16)  # type: ignore[attr-defined]
    assert shared(tensors[0], half) == [["w0"], ["w1"]], "the same tensor, but not the same bytes"


def test_weights_share_with_what_is_in_the_file_already(tmp_path: Path) -> None:
    tensors = [
        of_checkpoint(tmp_path, ARRAY, name="a"),
        in_source(ARRAY),
        CheckpointTensor("b", of_checkpoint(tmp_path, ARRAY, name="b").stored, FLOAT),
        in_memory(ARRAY.view(np.int32)),
    ]
    assert shared(*tensors) == [["w0", "w1", "w2", "w3"]]


def test_zeros_of_two_dtypes(tmp_path: Path) -> None:
    """Their bytes are the same; but a weight cannot be looked at as another dtype than it becomes."""
    (tmp_path / "zeros").write_bytes(bytes(2400))
    tensors = [
        CheckpointTensor(
            str(dtype), StoredTensor("w", tmp_path / "zeros", "F16", (count,), 0, 2 * count), dtype
        )
        for dtype, count in ((FLOAT, 600), (ir.DataType.FLOAT16, 1200), (FLOAT, 600))
    ]
    assert shared(*tensors) == [["w0", "w2"], ["w1"]]
    assert shared(*tensors, ir.Tensor(np.zeros(2400, np.uint8), name="bytes")) == [["w0", "w1", "w2", "w3"]]


def test_only_what_equals_weights(tmp_path: Path) -> None:
    tensors = [
        in_memory(ARRAY),
        of_checkpoint(tmp_path, ARRAY, name="a"),
        in_source(ARRAY),
        of_checkpoint(tmp_path, ARRAY, name="b"),
        in_memory(OTHER),
        in_source(OTHER),
    ]
    assert shared(*tensors, only=CheckpointTensor) == [["w0", "w1", "w2", "w3"], ["w4"], ["w5"]]
    assert shared(*tensors[4:], only=CheckpointTensor) == [["w0"], ["w1"]]


def test_references_are_not_followed(tmp_path: Path) -> None:
    """Equal ones are one storage as they are; the checkpoint need not even be there."""
    names = ["a", "b", "a"]
    tensors = [UnboundTensor("r", tmp_path / "nowhere", name, FLOAT, (60, 40)) for name in names]
    model = model_of(*tensors)
    assert deduplicate_constants(model) == (2, 0, 0)
    assert tensors_of(model) == {f"w{k}": tensor for k, tensor in enumerate(tensors)}


def test_of_what_differs_at_once_no_more_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def noted(tensor: ir.TensorProtocol, size: int):
        for chunk in chunks(tensor, size):
            read.append(len(chunk))
            yield chunk

    monkeypatch.setattr("o2o.rewriting.deduplicate_constants.chunks", noted)
    (tmp_path / "data").write_bytes(b"".join(weights(60, 40, seed=seed).tobytes() for seed in range(4)))
    source = open_file(tmp_path / "data")
    tensors = [SourceTensor(source, Span(9600 * k, 9600), FLOAT, (2400,), "w") for k in range(3)]
    longer = SourceTensor(source, Span(28800, 9600 - 4), FLOAT, (2399,), "w")
    assert deduplicate_constants(model_of(*tensors, longer)) == (4, 0, 0)
    assert read == [SAMPLE] * 3


def test_sharing_twice_changes_nothing() -> None:
    model = model_of(in_memory(ARRAY), in_source(ARRAY), in_source(OTHER))
    assert deduplicate_constants(model)[1] == 1
    once = formats.dumps(model)
    assert deduplicate_constants(model) == (2, 0, 0)
    assert formats.dumps(model) == once


@given(st.lists(st.sampled_from([b"", b"a" * 8, b"b" * 8, b"a" * 5000, b"a" * 4999 + b"b"]), max_size=8))
def test_as_many_buffers_as_there_are_contents(contents: list[bytes]) -> None:
    graph = Graph("main")
    for index, content in enumerate(contents):
        graph.output(graph.constant(f"w{index}", np.frombuffer(content, np.uint8).copy()))
    model = graph.model()
    *_, saved = deduplicate_constants(model)
    distinct = {content for content in contents if content}
    collected = tensors_of(formats.loads(formats.dumps(model)))
    assert len({storage_key(tensor) for tensor in collected.values()}) == len(distinct)
    assert saved == sum(map(len, contents)) - sum(map(len, distinct))
    assert {n: t.tobytes() for n, t in collected.items()} == {f"w{k}": c for k, c in enumerate(contents) if c}
