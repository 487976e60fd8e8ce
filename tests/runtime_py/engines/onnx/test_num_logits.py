"""ONNX models that return the logits of the last token, made to return those of each."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from o2o import formats
from o2o.filters import lower_onnx
from o2o.formats import onnx_writer
from o2o.lower.onnx import lower_to_onnx
from o2o.model import Model
from runtime_py.engines.onnx.engine import OnnxEngine
from runtime_py.engines.onnx.num_logits import select_logits
from tests.o2o.graphs import Graph
from tests.o2o.lower.onnx.decoders import Shape, answers, decoder
from tests.runtime_py.toy import Toy
from tests.runtime_py.toy_onnx import toy_onnx
from tests.tolerances import assert_close


@pytest.mark.parametrize("form", ["standard", "ort"])
def test_a_lowered_model_with_external_data(pipeline_package, form, tmp_path):
    file = tmp_path / "model.onnx"
    assert lower_onnx.main([str(pipeline_package.model), "--form", form, "-o", str(file)]) == 0
    assert file.with_name("model.onnx.data").exists()
    before = file.read_bytes()
    changed = select_logits(file)
    assert changed is not None
    engines = OnnxEngine(changed, origin=file), OnnxEngine(file)
    assert [engine.gives_all_logits for engine in engines] == [True, False]
    text = np.random.default_rng(0).integers(3, 100, 20).tolist()
    every, one_by_one = (np.concatenate([*engine.open_session().logits(text)]) for engine in engines)
    assert_close(every, one_by_one)
    for engine in engines:
        engine.close()
    assert file.read_bytes() == before


def test_logits_that_are_scaled_and_bounded(tmp_path):
    """As in Gemma 2 and Cohere: the constant is the first operand."""
    shape = Shape(S=9)

    def scaled() -> Model:
        model = decoder(shape)
        graph = Graph("unused")
        graph.ir = model.graphs[0]
        (logits,) = graph.ir.outputs
        bounded = graph.op("TANH", [logits], [1, 1, shape.V])
        final = graph.op(
            "MUL", [graph.constant("factor", np.float32(3)), bounded], [1, 1, shape.V], name="final"
        )
        final.meta["role"] = logits.meta.pop("role")
        graph.ir.outputs[0] = final
        return model

    file = tmp_path / "model.onnx"
    formats.save(onnx_writer.new_model(lower_to_onnx(scaled(), "ort")), file)
    changed = select_logits(file)
    assert changed is not None
    engine = OnnxEngine(changed, origin=file)
    ids = [3, 1, 4, 1, 5]
    assert_close(np.concatenate([*engine.open_session().logits(ids)]), answers(scaled(), ids))
    engine.close()


def test_a_model_that_returns_all_logits_needs_no_change(tmp_path):
    onnx.save(toy_onnx(Toy(), every_logit=True), tmp_path / "model.onnx")
    assert select_logits(tmp_path / "model.onnx") is None


def test_another_selection_is_left_alone(tmp_path):
    """The toy selects by Gather, and a Slice from another row is not the last row."""
    model = toy_onnx(Toy())
    onnx.save(model, tmp_path / "model.onnx")
    assert select_logits(tmp_path / "model.onnx") is None


@pytest.mark.parametrize("content", [b"", b"no model", b"\x89PNG\r\n"])
def test_files_that_are_no_model_are_left_to_onnx_runtime(content, tmp_path):
    (tmp_path / "model.onnx").write_bytes(content)
    assert select_logits(tmp_path / "model.onnx") is None


def test_a_model_without_contract(tmp_path):
    onnx.save(toy_onnx(Toy(), with_contract=False), tmp_path / "model.onnx")
    assert select_logits(tmp_path / "model.onnx") is None
