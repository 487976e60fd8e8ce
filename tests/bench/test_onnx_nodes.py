"""A sample of ONNX's own test models, read and written again."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.backend.test
import pytest

from bench.onnx_nodes import same, verdict, without_empty_strings

DATA = Path(onnx.backend.test.__file__).parent / "data"
FILES = sorted(DATA.glob("simple/*/model.onnx")) + sorted(DATA.glob("pytorch-operator/*/model.onnx"))


@pytest.mark.parametrize("chosen", [[], ["gc"]])
def test_a_sample(chosen: list[str], tmp_path: Path) -> None:
    assert len(FILES) > 40
    for file in FILES:
        result = verdict(onnx.load(file), (), chosen, tmp_path)
        assert result == "not evaluated", (file.parent.name, result)


def test_what_differs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {y = Neg (x)}'
    )
    import numpy as np

    data_sets = [([np.ones(2, np.float32)], None)]
    assert verdict(proto, data_sets, [], tmp_path) == "the same"
    other = onnx.ModelProto.FromString(proto.SerializeToString())
    other.graph.node[0].op_type = "Abs"
    monkeypatch.setattr("o2o.formats.dumps", lambda model: other.SerializeToString())
    assert verdict(proto, data_sets, [], tmp_path) == "another message"


def test_empty_strings_mean_the_same() -> None:
    node = onnx.helper.make_node("Neg", ["x"], ["y"], domain="")
    assert without_empty_strings(node) == onnx.NodeProto(op_type="Neg", input=["x"], output=["y"])
    assert same([1.0, None], [1.0, None])
    assert not same([1.0], [2.0])
