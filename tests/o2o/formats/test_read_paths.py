"""A model is the same from memory, a file or a pipe, with a frame or without, and is written byte for byte.

So it is with large constants by offset, and through a filter.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from o2o import formats
from o2o.filters import gc
from o2o.formats import fingerprint, reader, tables, tensors, writer
from o2o.formats.tensors import SourceTensor
from o2o.formats.writer import plan
from o2o.model import Model
from o2o.streams import MemorySource, Source, open_file
from o2o.streams.framing import AT, MAGIC, Frame, parse_frame
from o2o.streams.source import PipeSource
from tests.o2o.formats.tico import verifier_errors
from tests.o2o.graphs import SAMPLES, Graph, float_models, weights
from tests.o2o.streams.test_source import everything, piped

READ_PATHS = ("memory", "file", "pipe", "file without a frame", "pipe without a frame")
ENOUGH = settings(max_examples=25, deadline=None, suppress_health_check=[*HealthCheck])


@pytest.fixture(autouse=True, params=["as it is", "all large"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether toy constants are data, as those of gigabytes are."""
    if request.param == "all large":
        for module in (tensors, fingerprint, reader, tables, writer):
            if hasattr(module, "LARGE"):
                monkeypatch.setattr(module, "LARGE", 1)


def source_of(data: bytes, read_path: str, folder: Path) -> Source:
    if "without" in read_path:  # as a tool would leave it that knows nothing of frames
        data = data[:AT] + bytes(len(MAGIC)) + data[AT + len(MAGIC) :]
    if "file" in read_path:
        (folder / "model").write_bytes(data)
        return open_file(folder / "model")
    return PipeSource(piped(data), "pipe") if "pipe" in read_path else MemorySource(data)


def written(model: Model, consume_sources: bool, limit: int) -> bytes:
    sink = io.BytesIO()
    planned = plan(model, limit)
    planned.write(sink, consume_sources=consume_sources)
    assert len(sink.getvalue()) == planned.size
    return sink.getvalue()


def through_gc(data: bytes, read_path: str, folder: Path) -> bytes:
    """What gc.py makes of it, on stdin and stdout that are pipes, or from file to file."""
    if "pipe" not in read_path:
        (folder / "in").write_bytes(data)
        assert gc.main([str(folder / "in"), "-o", str(folder / "out")]) == 0
        return (folder / "out").read_bytes()
    reader_, writer_ = os.pipe()
    result = bytearray()
    thread = threading.Thread(target=lambda: result.extend(everything(reader_)))
    thread.start()
    with (
        pytest.MonkeyPatch.context() as patch,
        os.fdopen(piped(data)) as stdin,
        os.fdopen(writer_, "w") as stdout,
    ):
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        assert gc.main([]) == 0
    thread.join()
    return bytes(result)


def assert_the_same_by_every_read_path(model: Model, limit: int) -> None:
    data = written(model, False, limit)
    assert plan(formats.loads(data), limit).size == len(data)
    collected = set()
    for read_path in READ_PATHS:
        with tempfile.TemporaryDirectory() as folder:
            for consume_sources in (True, False):
                actual = formats.read(source_of(data, read_path, Path(folder)))
                assert written(actual, consume_sources, limit) == data, (read_path, consume_sources)
            numbers = formats.read(source_of(data, read_path, Path(folder)))
            for graph in numbers.graphs:
                for value in graph.initializers.values():  # read, in no order, before they are written
                    assert value.const_value is not None
                    value.const_value.numpy()
            assert written(numbers, True, limit) == data, read_path
            if "without" not in read_path:
                collected.add(through_gc(data, read_path, Path(folder)))
    assert len(collected) == 1
    once = collected.pop()
    assert formats.dumps(formats.loads(once)) == once


LIMITS = st.sampled_from([writer.FLATBUFFER_LIMIT, 0])  # constants inside, or by offset where they are large


@given(float_models(), LIMITS)
@ENOUGH
def test_random_models(model: Model, limit: int) -> None:
    assert_the_same_by_every_read_path(model, limit)


@pytest.mark.parametrize("limit", [writer.FLATBUFFER_LIMIT, 0])
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_every_kind_of_model(name: str, limit: int) -> None:
    assert_the_same_by_every_read_path(SAMPLES[name](), limit)


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.permutations(range(6)), LIMITS)
@ENOUGH
def test_constants_of_any_size_in_any_order(sizes: Sequence[int], order: Sequence[int], limit: int) -> None:
    """They come in the order of a file, and are asked for in another: what a pipe cannot pass, it keeps."""
    graph = Graph("main")
    for index, size in enumerate(sizes):
        graph.output(graph.constant(f"w{index}", weights(size, seed=index)))
    data = written(graph.model(), False, limit)
    large = [size * 4 for size in sizes if size * 4 >= writer.LARGE]
    there = [value.const_value for value in formats.loads(data).graphs[0].initializers.values()]
    outside = [t.nbytes for t in there if isinstance(t, SourceTensor) and t.span.outside]
    assert outside == (large if limit == 0 else [])
    expected = None
    for read_path in READ_PATHS:
        with tempfile.TemporaryDirectory() as folder:
            model = formats.read(source_of(data, read_path, Path(folder)))
            actual = model.graphs[0]
            permuted = [actual.initializers[f"w{k}"] for k in order if f"w{k}" in actual.initializers]
            for value in permuted:
                del actual.initializers[value.name]  # type: ignore[arg-type]
            for value in permuted[: len(permuted) // 2 + 1]:  # and some are dropped
                actual.register_initializer(value)
            actual.outputs[:] = list(actual.initializers.values())
            model.signatures.clear()
            result = written(model, True, limit)
            expected = result if expected is None else expected
            assert result == expected, read_path
    again = formats.loads(expected or b"").graphs[0].initializers
    for name, value in again.items():
        np.testing.assert_array_equal(
            value.const_value.numpy(),  # type: ignore[union-attr]
            weights(sizes[int(name[1:])], seed=int(name[1:])),
        )


@pytest.mark.parametrize("read_path", READ_PATHS)
def test_a_file_of_an_older_version(read_path: str, tmp_path: Path) -> None:
    """Its frame has no sizes: they are in `Buffer.size` of its inline buffers."""
    data = (Path(__file__).parent / "old_frame.circle").read_bytes()
    if "without" not in read_path:
        assert parse_frame(data) == Frame(796, len(data), None)
    model = formats.read(source_of(data, read_path, tmp_path))
    actual = {name: v.const_value for name, v in model.graphs[0].initializers.items() if v.const_value}
    assert {name: tensor.nbytes for name, tensor in actual.items()} == {"w": 5120, "v": 6000, "small": 12}
    np.testing.assert_array_equal(actual["w"].numpy().reshape(-1), np.arange(1280, dtype=np.float32) / 7)
    np.testing.assert_array_equal(actual["v"].numpy(), np.arange(1500, dtype=np.float32))
    assert verifier_errors(formats.dumps(model)) == []
