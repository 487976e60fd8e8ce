"""Lowering without copying weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from o2o.errors import ModelError
from o2o.formats import loads, save
from o2o.formats.unbound_tensor import UnboundTensor
from runtime_py.engines.litert.engine import LiteRtEngine
from runtime_py.engines.litert.lowered_file import LoweredFile, lower_file
from runtime_py.engines.litert.mapped_bytes import MIN_MAPPED
from runtime_py.engines.model_file import ModelFile
from runtime_py.model.contract import Contract
from tests.runtime_py.toy import Toy
from tests.tolerances import assert_close

VOCAB = 300  # so that tables are too large for the header


def write_circle(toy: Toy, path: Path) -> Path:
    model = loads(toy.file)
    model.format = "circle"
    model.fields.pop("version", None)
    save(model, path)
    return path


def assert_answers(toy: Toy, lowered: LoweredFile, file: Path, factor: float = 1) -> None:
    engine = LiteRtEngine(lowered.open(file), Contract.parse(lowered.contract))
    session = engine.open_session()
    tokens = [7, 299, 3, 5, 8, 1]
    for count in (3, 6):
        wanted = factor * toy.logits(tokens[:count])
        assert_close(session.prefill(tokens[:count]), wanted)
    engine.close()


@pytest.mark.parametrize("mapped", [True, False])
def test_large_constants_stay_in_the_file(tmp_path, mapped):
    toy = Toy(vocab=VOCAB, cached_lengths=[2])
    file = write_circle(toy, tmp_path / "model.circle")
    if mapped:
        os.truncate(file, MIN_MAPPED)
    lowered = lower_file(ModelFile(file))
    for table in (toy.keys, toy.values, toy.lm_head):
        assert table.tobytes() in file.read_bytes()
        assert table.tobytes() not in lowered.header
    assert len(lowered.offsets) == 3 * 3  # for each signature, as the toy stores them
    assert_answers(toy, lowered, file)


def test_large_constants_that_lowering_makes_go_into_the_head(tmp_path, monkeypatch):
    from o2o.lower import litert

    def double(model):
        for graph in model.graphs:
            for value in graph.initializers.values():
                if np.array_equal(value.const_value.numpy(), toy.lm_head):
                    value.const_value = ir.Tensor(2 * toy.lm_head, name=value.name)
        return lower(model)

    lower = litert.lower_to_litert
    monkeypatch.setattr(litert, "lower_to_litert", double)
    toy = Toy(vocab=VOCAB)
    file = write_circle(toy, tmp_path / "model.circle")
    lowered = lower_file(ModelFile(file))
    assert (2 * toy.lm_head).tobytes() in lowered.header
    assert len(lowered.offsets) == 2 * 2
    assert_answers(toy, lowered, file, 2)


def test_kept_and_found_again(tmp_path):
    toy = Toy(vocab=VOCAB)
    file = write_circle(toy, tmp_path / "model.circle")
    lowered = lower_file(ModelFile(file))
    (tmp_path / "kept").mkdir()
    lowered.save(tmp_path / "kept")
    again = LoweredFile.load(tmp_path / "kept")
    assert again == lowered
    assert_answers(toy, again, file)


def test_tflite_is_taken_as_it_is(tmp_path):
    toy = Toy()
    file = tmp_path / "model.tflite"
    file.write_bytes(toy.file)
    lowered = lower_file(ModelFile(file))
    assert lowered.open(file) == file
    lowered.save(tmp_path)
    assert LoweredFile.load(tmp_path) == lowered


def test_weights_that_are_elsewhere(tmp_path):
    model = loads(Toy(vocab=VOCAB).file)
    value = max(model.graphs[0].initializers.values(), key=lambda value: value.const_value.nbytes)
    shape = tuple(value.shape.numpy())
    value.const_value = UnboundTensor(
        value.name or "", tmp_path / "weights.bin", "w", ir.DataType.FLOAT, shape
    )
    save(model, tmp_path / "model.tflite")
    with pytest.raises(ModelError, match=r"model.tflite: .* in other files: .* bind.weights.py"):
        lower_file(ModelFile(tmp_path / "model.tflite"))
