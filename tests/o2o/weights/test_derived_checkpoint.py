"""The file that defines the weights of a derived checkpoint is written and read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from o2o.errors import ModelError
from o2o.weights import safetensors
from o2o.weights.checkpoint import open_checkpoint
from o2o.weights.derived_checkpoint import FILE, write_index
from o2o.weights.derived_tensor import Concatenated, LowRank, Rows, Shifted, Sum, Transposed, expression_of

W = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"w": W, "half": W.astype(np.float16)}, tmp_path / "source.safetensors")
    tensors = safetensors.read_header(tmp_path / "source.safetensors")
    w, half = (expression_of(tensors[name]) for name in ("w", "half"))
    folder = tmp_path / "derived"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    right = Concatenated((half, Rows(half, ((0, 1, 1),))))
    update = Sum(Shifted(w, 1.0), LowRank(Rows(w, ((2, 3, 1), (0, 2, 1))), right), 2.0)
    write_index(folder / FILE, {"model.update": Transposed(update), "model.half": half})
    return folder


def test_what_is_written_is_read(folder: Path) -> None:
    tensors = open_checkpoint(folder).tensors
    assert list(tensors) == ["model.update", "model.half"]
    expected = W + 1 + 2 * (W[[2, 0, 1]] @ np.concatenate([W, W[:1]]))
    np.testing.assert_array_equal(tensors["model.update"].read_float32(), expected.T)
    np.testing.assert_array_equal(tensors["model.half"].read_float32(), W)
    assert tensors["model.half"].dtype == "F16"


def test_a_source_that_has_changed(folder: Path) -> None:
    save_file({"w": W}, folder.parent / "source.safetensors")
    with pytest.raises(
        ModelError, match=r"source.safetensors has changed since .*derived_weights.json was made"
    ):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', '{"version": 9}'])
def test_a_damaged_file(folder: Path, text: str) -> None:
    (folder / FILE).write_text(text)
    with pytest.raises(ModelError, match=r"is damaged|has version 9"):
        open_checkpoint(folder)


def test_an_unknown_operation(folder: Path) -> None:
    record = json.loads((folder / FILE).read_text())
    record["tensors"]["model.update"]["op"] = "Power"
    (folder / FILE).write_text(json.dumps(record))
    with pytest.raises(ModelError, match="no operation 'Power'"):
        open_checkpoint(folder)
