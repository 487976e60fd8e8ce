"""lower.onnx: Circle in, ONNX out; the lowering itself is in tests/o2o/lower/onnx."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from o2o import formats
from o2o.filters import lower_onnx
from o2o.lower.litert import lower_to_litert
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import decoder as scattered
from tests.o2o.lower.onnx.decoders import Shape, decoder


def test_a_file(command: Command) -> None:
    code, target = command.run(decoder(Shape(D=128, I=256)))
    assert code == 0
    assert command.said.startswith("lower.onnx.py: standard: ")
    model = onnx.load(str(target))
    onnx.checker.check_model(str(target), full_check=True)
    assert [value.name for value in model.graph.input][:2] == ["tokens", "position"]
    metadata = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert metadata["o2o.history"][-1]["filter"] == "lower.onnx.py"
    assert metadata["o2o.contract"]["signatures"]["decode"]["outputs"][0]["shape"] == [1, 1, 67]
    assert Path(f"{target}.data").exists()


def test_flags(command: Command) -> None:
    code, target = command.run(decoder(), "--form", "ort", "--logits", "all")
    assert code == 0
    model = onnx.load(str(target))
    assert "GroupQueryAttention" in {node.op_type for node in model.graph.node}
    assert [dim.dim_param or dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == [
        1,
        "T",
        67,
    ]
    (entry,) = (json.loads(p.value)[-1] for p in model.metadata_props if p.key == "o2o.history")
    assert entry["arguments"] == ["--form", "ort", "--logits", "all"]


def test_stdout_has_all_of_it(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    source = tmp_path / "in.circle"
    formats.save(decoder(Shape(D=128, I=256)), source)
    assert lower_onnx.main([str(source)]) == 0
    model = onnx.load_from_string(capsysbinary.readouterr().out)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_refusals(command: Command) -> None:
    code, message = command.refusal(scattered())
    assert code == 1
    assert "no tensor has the role value_cache" in message
    code, message = command.refusal(lower_to_litert(decoder()))
    assert code == 1
    assert "a tflite model, but this filter needs circle" in message
