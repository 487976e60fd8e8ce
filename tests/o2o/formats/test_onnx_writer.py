"""ONNX in files: small, beside, through a pipe, and when something goes wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.formats import onnx_writer, writer
from o2o.formats.computed_tensors import UnsignedBlocks
from o2o.formats.concatenated_tensor import ConcatenatedTensor
from o2o.formats.onnx_writer import new_model
from o2o.formats.tensors import SourceTensor
from o2o.lower.onnx import lower_to_onnx
from o2o.quantization.quantize import quantize
from o2o.quantization.recipes import find_recipe
from tests.o2o.lower.onnx.decoders import Shape, answers, decoder
from tests.o2o.lower.onnx.running import Running
from tests.tolerances import assert_close

pytest.importorskip("onnxruntime")
BIG = Shape(D=128, I=256, V=301)


def write(model: ir.Model, path: Path) -> None:
    formats.save(new_model(model), path)


def stream(model: ir.Model, sink: BinaryIO) -> None:
    formats.write(new_model(model), sink)


def lowered(recipe: str = "none", form: str = "ort") -> ir.Model:
    model = decoder(BIG)
    if recipe != "none":
        quantize(model, find_recipe(recipe))
    return lower_to_onnx(formats.loads(formats.dumps(model)), form)


@pytest.mark.parametrize("recipe", ["none", "dynamic_int8", "dynamic_int4_block32", "float16"])
@pytest.mark.parametrize("form", ["standard", "ort"])
def test_in_memory_in_a_pipe_and_beside(form: str, recipe: str, tmp_path: Path) -> None:
    """The same model, and the same numbers, in each."""
    sink = io.BytesIO()
    stream(lowered(recipe, form), sink)
    write(lowered(recipe, form), tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=form == "standard")
    expected = ir.to_proto(lowered(recipe, form))
    for actual in (onnx.load_from_string(sink.getvalue()), onnx.load(str(tmp_path / "model.onnx"))):
        assert actual.graph.node == expected.graph.node
        assert actual.metadata_props == expected.metadata_props
        assert constants(actual) == constants(expected)
    assert Running(tmp_path / "model.onnx").step([1, 2], 0).shape == (1, 1, BIG.V)


def constants(proto: onnx.ModelProto) -> dict[str, tuple[int, list[int], bytes]]:
    return {
        tensor.name: (tensor.data_type, list(tensor.dims), ir.serde.deserialize_tensor(tensor).tobytes())
        for tensor in proto.graph.initializer
    }


def test_beside_it_lie_the_large_ones_on_pages(tmp_path: Path) -> None:
    write(lowered(), tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    outside = [{e.key: e.value for e in t.external_data} for t in graph.initializer if t.external_data]
    assert len(outside) > 10
    assert {entry["location"] for entry in outside} == {"model.onnx.data"}
    assert all(int(entry["offset"]) % 4096 == 0 for entry in outside)
    assert max(t.ByteSize() for t in graph.initializer) < onnx_writer.LARGE_EXTERNAL + 100
    ids = [3, 1, 4, 1, 5]
    logits = Running(tmp_path / "model.onnx").step(ids, 0).reshape(-1)
    assert_close(logits, answers(decoder(BIG), ids)[-1])


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(lowered("dynamic_int8"), tmp_path / name / "model.onnx")
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    write(lower_to_onnx(decoder(Shape(D=16, I=16, H=8)), "ort"), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("model.onnx", "model.onnx.data"):
        (tmp_path / file).write_bytes(b"old")
    copied = []

    def fail(tensor: ir.TensorProtocol, sink: object) -> None:
        copied.append(tensor)
        if len(copied) == 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "stream", fail)
    with pytest.raises(OSError, match="No space left"):
        write(lowered(), tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"old"}


def test_through_a_link(tmp_path: Path) -> None:
    """The weights lie beside the file, not beside the link to it."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.onnx").write_bytes(b"old")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "there" / "real.onnx")
    write(lowered(), tmp_path / "link.onnx")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["real.onnx", "real.onnx.data"]
    assert Running(tmp_path / "there" / "real.onnx").step([1], 0).shape == (1, 1, BIG.V)


def test_too_large_for_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_writer, "LIMIT", 100_000)
    sink = io.BytesIO()
    with pytest.raises(
        ModelError, match=r"takes [\d,]+ bytes, and one .* -o FILE writes the weights to a second"
    ):
        stream(lowered(), sink)
    assert not sink.getvalue()


def test_constants_are_read_when_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowering looks at no large constant."""
    formats.save(decoder(BIG), tmp_path / "model.circle")
    model = formats.load(tmp_path / "model.circle")
    with monkeypatch.context() as patch:
        patch.setattr(SourceTensor, "_read", lambda self: pytest.fail(f"{self.name} was read"))
        lowered_model = lower_to_onnx(model, "ort")
    write(lowered_model, tmp_path / "model.onnx")
    assert Running(tmp_path / "model.onnx").step([1], 0).shape == (1, 1, BIG.V)


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_blocks_are_converted_some_rows_at_a_time(at_once: int) -> None:
    first, second = (np.random.default_rng(k).integers(-128, 128, (5, 6)).astype(np.int8) for k in (0, 1))
    matrix = ConcatenatedTensor("w", [ir.Tensor(first), ir.Tensor(second)])
    blocks = UnsignedBlocks(matrix, 10, 6, 4)
    written = np.frombuffer(b"".join(blocks.chunks(at_once)), np.uint8).reshape(10, 8)
    np.testing.assert_array_equal(written[:, :6].astype(int) - 128, np.concatenate([first, second]))
    assert (written[:, 6:] == 128).all()
    assert blocks.numpy().tobytes() == written.tobytes()
