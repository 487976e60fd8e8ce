"""Binding: external tensors become the weights of a checkpoint, or the error names what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import save_file

from o2o import formats
from o2o.errors import ModelError
from o2o.formats.fingerprint import fingerprint
from o2o.formats.tensors import storage_key, with_shape
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model
from o2o.weights.binding import bind, unbound_tensors, weight_of
from tests.o2o.graphs import Graph

NUMBERS = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
FLOAT = ir.DataType.FLOAT


def checkpoint(directory: Path, dtype: torch.dtype = torch.float32, **more: torch.Tensor) -> Path:
    """A file with the tensors `w` and `v` (and more)."""
    path = directory / "model.safetensors"
    tensors = {"w": NUMBERS.to(dtype), "v": NUMBERS.flip(0).contiguous().to(dtype), **more}
    save_file(tensors, path)
    (directory / "config.json").write_text("{}")
    return path


def model_of(path: Path, *names: str, shape: tuple[int, ...] = (64, 48)) -> Model:
    """x w' + x v' + ..., as Circle; each constant a reference."""
    graph = Graph("main")
    x = graph.input("x", [2, shape[-1]])
    for name in names:
        w = graph.constant(name, np.zeros(shape, np.float32))
        w.const_value = UnboundTensor(name, path, name, FLOAT, shape)
        graph.output(graph.fc(x, w, f"y_{name}"))
    return graph.model()


def test_numbers_are_found_when_someone_asks(tmp_path: Path) -> None:
    model = formats.loads(formats.dumps(model_of(checkpoint(tmp_path, torch.bfloat16), "w")))
    constant = model.graphs[0].initializers["w"].const_value
    assert isinstance(constant, UnboundTensor)
    np.testing.assert_array_equal(weight_of(constant).numpy(), NUMBERS.bfloat16().float().numpy())


def test_one_tensor_is_one_buffer_in_any_shape(tmp_path: Path) -> None:
    reference = UnboundTensor("w", checkpoint(tmp_path), "w", FLOAT, (64, 48))
    flat = with_shape(reference, (3072,), "flat")
    assert isinstance(flat, UnboundTensor)
    assert storage_key(flat) == storage_key(reference)
    np.testing.assert_array_equal(weight_of(flat).numpy(), NUMBERS.numpy().reshape(-1))
    assert storage_key(UnboundTensor("v", reference.path, "v", FLOAT, (64, 48))) != storage_key(reference)


def test_both_ways_give_the_same_fingerprint_and_bytes(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    outside = formats.loads(formats.dumps(model_of(path, "w", "v")))
    inside = formats.loads(formats.dumps(outside))
    bind(inside)
    data = formats.dumps(inside)
    assert fingerprint(formats.loads(data)) == fingerprint(outside)
    assert bind(outside) == 2
    assert formats.dumps(outside) == data


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    reference = UnboundTensor("w", checkpoint(tmp_path), "w", FLOAT, (64, 48))
    np.testing.assert_array_equal(weight_of(reference).numpy(), NUMBERS.numpy())
    checkpoint(tmp_path, a=torch.zeros(100))
    np.testing.assert_array_equal(weight_of(reference).numpy(), NUMBERS.numpy())


# --- what does not fit -----------------------------------------------------------------------------------


def removed(path: Path, *names: str) -> None:
    from safetensors.torch import load_file

    save_file({name: tensor for name, tensor in load_file(path).items() if name not in names}, path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    model = model_of(checkpoint(tmp_path), "w", "v")
    removed(tmp_path / "model.safetensors", "v")
    with pytest.raises(ModelError, match=r"model\.safetensors does not fit the model: it lacks v$"):
        bind(model)
    with pytest.raises(ModelError, match="lacks v, which the model refers to"):
        weight_of({value.name: tensor for value, tensor in unbound_tensors(model)}["v"])


def test_what_is_left_over_is_named(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, extra=torch.zeros(2))
    with pytest.raises(ModelError, match=r"it holds extra, v, which the model does not use \(--partial"):
        bind(model_of(path, "w"))
    assert bind(model_of(path, "w"), partial=True) == 1
    known = model_of(path, "w")
    known.unused = {str(path): {"extra": "", "v": ""}}
    assert bind(formats.loads(formats.dumps(known))) == 1


def test_another_shape_is_told(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    model = model_of(path, "w", "v", shape=(48, 64))
    with pytest.raises(ModelError, match=r"has w as \[64, 48\], not \[48, 64\]; has v as"):
        bind(model)


def test_a_checkpoint_that_is_gone_or_elsewhere(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    model = model_of(path, "w", "v")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path.rename(elsewhere / path.name)
    (tmp_path / "config.json").rename(elsewhere / "config.json")
    with pytest.raises(ModelError, match=r"does not exist: bind\.weights\.py --checkpoint DIR"):
        bind(model)
    assert bind(model, elsewhere) == 2
    np.testing.assert_array_equal(
        model.graphs[0].initializers["w"].const_value.numpy(),  # type: ignore[union-attr]
        NUMBERS.numpy(),
    )
