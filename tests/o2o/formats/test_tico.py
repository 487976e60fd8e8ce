"""Samsung's reader (TICO) accepts the Circle files that are written here, and its files can be read here."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from o2o import formats
from o2o.formats import write
from o2o.formats.dialects import convert
from o2o.formats.tensors import LARGE, SourceTensor
from o2o.formats.writer import FLATBUFFER_LIMIT
from o2o.model import Model
from tests.o2o.formats.tico import verifier_errors
from tests.o2o.graphs import SAMPLES, Graph, weights

# Legal Circle that the verifier does not know: state of a graph as an operand, an output that is left out.
UNKNOWN = {"stateful": "UNDEFINED_INPUT", "custom": "INVALID_INDEX"}
BY_OFFSET = 0  # a limit that no file is within


def written(model: Model, limit: int = FLATBUFFER_LIMIT) -> bytes:
    sink = io.BytesIO()
    write(model, sink, limit)
    return sink.getvalue()


def circle(name: str) -> Model:
    model = SAMPLES[name]()
    convert(model, "circle")
    return model


CIRCLE = [name for name in sorted(SAMPLES) if SAMPLES[name]().format == "circle"]


@pytest.mark.parametrize("limit", [FLATBUFFER_LIMIT, BY_OFFSET], ids=["inline", "by-offset"])
@pytest.mark.parametrize("name", CIRCLE)
def test_samples(name: str, limit: int) -> None:
    errors = verifier_errors(written(circle(name), limit))
    assert all(UNKNOWN.get(name, "none") in error for error in errors), errors


def constants(*sizes: int) -> Model:
    """A model that returns constants of these sizes in bytes; two of each share their bytes."""
    graph = Graph("main")
    for size in sizes:
        first = graph.constant(f"w{size}", weights(size // 4, seed=size))
        second = graph.constant(f"v{size}", np.zeros(size // 4, np.float32))
        second.const_value = first.const_value
        graph.output(first)
        graph.output(second)
    return graph.model()


@pytest.mark.parametrize("limit", [FLATBUFFER_LIMIT, BY_OFFSET], ids=["inline", "by-offset"])
def test_sizes_around_the_limit_of_the_head(limit: int) -> None:
    from tico.circle import CircleDocument

    sizes = [4, LARGE - 4, LARGE, LARGE + 4, 10 * LARGE]
    model = constants(*sizes)
    data = written(model, limit)
    assert verifier_errors(data) == []
    buffers = CircleDocument.from_bytes(data).model.buffers
    assert (
        sorted(len(buffer.data) for buffer in buffers if buffer.data is not None and len(buffer.data))
        == sizes
    )
    again = formats.loads(data)
    for name, value in model.graphs[0].initializers.items():
        assert value.const_value is not None
        stored = again.graphs[0].initializers[name].const_value
        assert stored is not None
        assert stored.tobytes() == value.const_value.tobytes()


def test_the_command_accepts_a_file(tmp_path: Path) -> None:
    formats.save(constants(4, LARGE), tmp_path / "model.circle")
    command = [str(Path(sys.executable).with_name("tico-circle")), "verify", str(tmp_path / "model.circle")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_tico_writes_can_be_read() -> None:
    from tico.circle import CircleDocument

    model = constants(4, LARGE, 3 * LARGE)
    again = formats.loads(CircleDocument.from_bytes(written(model)).to_bytes())
    for name, value in model.graphs[0].initializers.items():
        assert value.const_value is not None
        stored = again.graphs[0].initializers[name].const_value
        assert stored is not None
        assert isinstance(stored, SourceTensor) == (stored.nbytes >= LARGE)
        assert stored.tobytes() == value.const_value.tobytes()
