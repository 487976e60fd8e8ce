"""ONNX read and written: nothing is lost, large constants stay where they are."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.formats.fingerprint import fingerprint
from o2o.formats.handover import Handover
from o2o.formats.onnx_writer import is_external
from o2o.formats.tensors import SourceTensor
from o2o.model import Model
from o2o.streams import ExternalFile
from tests.o2o.onnx_graphs import LARGE, branches, chain, data_of, everything

MODELS = {"branches": branches, "everything": everything, "chain": chain, "large": lambda: chain(large=True)}


def with_data_beside(folder: Path) -> Path:
    """A model with its large weight in `weights/w.bin`."""
    proto = chain(large=True)
    (folder / "weights").mkdir()
    weight = proto.graph.initializer[1]
    (folder / "weights" / "w.bin").write_bytes(bytes(64) + weight.raw_data)
    onnx.external_data_helper.set_external_data(weight, "weights/w.bin", 64, len(weight.raw_data))
    weight.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(data_of(proto))
    return folder / "model.onnx"


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_lost(name: str) -> None:
    data = data_of(MODELS[name]())
    assert onnx.ModelProto.FromString(formats.dumps(formats.loads(data))) == onnx.ModelProto.FromString(data)
    assert formats.dumps(formats.loads(data)) == data, "protobuf's own order of fields"


@pytest.mark.parametrize("name", MODELS)
def test_handed_over_as_if_it_was_read(name: str) -> None:
    data = data_of(MODELS[name]())
    model = Handover()(formats.loads(data))
    assert formats.dumps(model) == data


def test_attributes_without_a_type() -> None:
    """Files of the first version of the IR."""
    proto = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 6]> '
        "g (float[2] x) => (float[2] y) {y = LeakyRelu <alpha = 0.5> (x)}"
    )
    proto.graph.node[0].attribute[0].ClearField("type")
    written = onnx.ModelProto.FromString(formats.dumps(formats.loads(data_of(proto))))
    assert onnx.helper.get_attribute_value(written.graph.node[0].attribute[0]) == 0.5


def test_large_constants_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = formats.loads(data_of(everything()))
    tensors = {name: value.const_value for name, value in model.graphs[0].initializers.items()}
    assert isinstance(tensors["large"], SourceTensor)
    monkeypatch.setattr(SourceTensor, "_read", lambda self: pytest.fail(f"{self.name} was read"))
    assert formats.dumps(model) == data_of(everything())


def test_numbers_of_constants() -> None:
    constants = formats.loads(data_of(everything())).graphs[0].initializers
    numbers = {name: value.const_value.numpy() for name, value in constants.items() if value.const_value}
    np.testing.assert_array_equal(numbers["large"], np.arange(LARGE, dtype=np.float32))
    np.testing.assert_array_equal(numbers["sparse"], [0, 2.5, 0, 7, 0, 0])
    np.testing.assert_array_equal(numbers["int4"].astype(int), [1, -2, 7])
    assert list(numbers["words"]) == [b"a", "ö".encode()]


def test_external_data_stays_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = formats.load(with_data_beside(tmp_path))
    (tmp_path / "weights" / "w.bin").unlink()
    monkeypatch.chdir(tmp_path)
    assert formats.dumps(model) == (tmp_path / "model.onnx").read_bytes()


def test_its_place_is_relative_to_where_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = formats.load(with_data_beside(tmp_path))
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    again = formats.loads(formats.dumps(model))  # what the next filter of a pipe reads
    weight = again.graphs[0].initializers["w"].const_value
    assert isinstance(weight, SourceTensor)
    assert isinstance(weight.source, ExternalFile)
    assert weight.source.path == Path("../weights/w.bin")
    np.testing.assert_array_equal(
        weight.numpy(), onnx.numpy_helper.to_array(chain(True).graph.initializer[1])
    )


def test_saved_with_its_data_beside(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    formats.save(formats.load(with_data_beside(tmp_path / "a")), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size == LARGE * 8 * 4
    loaded = onnx.load(tmp_path / "out.onnx")
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in chain(large=True).graph.initializer}
    for tensor in loaded.graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), expected[tensor.name])
    first = (tmp_path / "out.onnx").read_bytes(), (tmp_path / "out.onnx.data").read_bytes()
    formats.save(formats.load(tmp_path / "out.onnx"), tmp_path / "out.onnx")
    assert ((tmp_path / "out.onnx").read_bytes(), (tmp_path / "out.onnx.data").read_bytes()) == first


def test_data_inside_stays_inside(tmp_path: Path) -> None:
    formats.save(formats.loads(data_of(chain(large=True))), tmp_path / "out.onnx")
    assert os.listdir(tmp_path) == ["out.onnx"]


def test_too_large_for_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("o2o.formats.onnx_writer.LIMIT", 50_000)
    model = formats.loads(data_of(chain(large=True)))
    with pytest.raises(ModelError, match="-o FILE writes the weights to a second file"):
        formats.dumps(model)
    formats.save(model, tmp_path / "out.onnx")
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "out.onnx.data"]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "weights/../../w.bin"])
def test_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    proto = onnx.load(with_data_beside(tmp_path), load_external_data=False)
    proto.graph.initializer[1].external_data[0].value = location
    (tmp_path / "model.onnx").write_bytes(data_of(proto))
    with pytest.raises(ModelError, match="outside the model's folder"):
        formats.load(tmp_path / "model.onnx")


def test_data_that_is_too_short(tmp_path: Path) -> None:
    path = with_data_beside(tmp_path)
    (tmp_path / "weights" / "w.bin").write_bytes(bytes(100))
    with pytest.raises(ModelError, match=r"w.bin: truncated: 100 bytes of"):
        formats.save(formats.load(path), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_constant_that_does_not_fit_its_shape() -> None:
    proto = chain(large=True)
    proto.graph.initializer[1].dims[0] += 1
    with pytest.raises(
        ModelError, match=r"<bytes>: damaged: the constant w has 131,072 bytes, and FLOAT \[4097, 8\]"
    ):
        formats.loads(data_of(proto))


def refusal(data: bytes) -> str:
    """Why a file is refused; empty for a model."""
    try:
        formats.loads(data)
    except ModelError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["branches", "everything"])
def test_a_file_cut_anywhere(name: str) -> None:
    data = data_of(MODELS[name]())
    for length in range(1, len(data) - 1, 61):
        assert "\n" not in refusal(data[:length])


@pytest.mark.parametrize("seed", range(30))
def test_damaged_bytes_give_one_line_or_a_model(seed: int) -> None:
    generator = np.random.default_rng(seed)
    data = bytearray(data_of(everything()))
    for place in generator.integers(0, len(data), 5):
        data[place] = generator.integers(256)
    assert "\n" not in refusal(bytes(data))


def test_contract_and_history() -> None:
    from o2o.contract import Role

    model = formats.loads(data_of(chain()))
    model.add_default_signature("decode")
    model.graphs[0].inputs[0].meta["role"] = Role("tokens")
    entry = {"filter": "gc.py", "arguments": [], "version": "0", "input": f"sha256:{0:064}"}
    model.history.append(entry)
    again = formats.loads(formats.dumps(model))
    assert again.signatures[0].inputs["x"].meta["role"] == Role("tokens")
    assert again.history == [entry]
    assert formats.dumps(again) == formats.dumps(model)


def test_fingerprint_does_not_cover_large_constants(tmp_path: Path) -> None:
    outside = formats.load(with_data_beside(tmp_path))
    assert fingerprint(outside) == fingerprint(formats.loads(data_of(chain(large=True))))
    assert fingerprint(outside) != fingerprint(formats.loads(data_of(chain())))


def test_external_is_known(tmp_path: Path) -> None:
    def external(model: Model) -> list[str]:
        values = model.graphs[0].initializers.values()
        return [value.name or "" for value in values if is_external(value.const_value)]

    assert external(formats.load(with_data_beside(tmp_path))) == ["w"]
    assert external(formats.loads(data_of(chain(large=True)))) == []


def test_through_a_pipe() -> None:
    sink = io.BytesIO()
    formats.write(formats.loads(data_of(everything())), sink)
    assert sink.getvalue() == data_of(everything())
