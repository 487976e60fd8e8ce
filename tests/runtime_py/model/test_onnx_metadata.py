"""What the runtime reads of an ONNX file itself."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from o2o.errors import ModelError
from runtime_py.model.onnx_metadata import may_have_external_data, read_metadata


@pytest.fixture
def model() -> onnx.ModelProto:
    graph = onnx.GraphProto(name="graph", doc_string="x" * 300)
    model = onnx.ModelProto(ir_version=10, graph=graph)
    onnx.helper.set_model_props(model, {"o2o.contract": '{"ü": 1}', "empty": ""})
    return model


def test_metadata(model: onnx.ModelProto, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    assert read_metadata(file) == {"o2o.contract": '{"ü": 1}', "empty": ""}
    file.write_bytes(onnx.ModelProto(ir_version=10).SerializeToString())
    assert read_metadata(file) == {}


def test_a_truncated_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString()[:-3])
    with pytest.raises(ModelError, match="truncated"):
        read_metadata(file)
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="damaged"):
        read_metadata(file)


def test_external_data(model: onnx.ModelProto, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    assert not may_have_external_data(file)
    tensor = model.graph.initializer.add(data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="weights")
    file.write_bytes(model.SerializeToString())
    assert may_have_external_data(file)
    file.write_bytes(b"")
    assert not may_have_external_data(file)
