"""External tensors: the record in a file, and the errors of a damaged record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.formats.unbound_tensor import UnboundTensor, loads
from o2o.weights.binding import bind, unbound_tensors
from tests.o2o.weights.test_binding import FLOAT, NUMBERS, checkpoint, model_of
from tests.tolerances import assert_close


def test_a_file_holds_references_and_no_numbers(tmp_path: Path) -> None:
    model = model_of(checkpoint(tmp_path), "w", "v")
    data = formats.dumps(model)
    assert len(data) < 4000 < NUMBERS.nbytes
    again = formats.loads(data)
    assert formats.dumps(again) == data
    locations = {value.name: (r.path, r.tensor_name, r.stored_shape) for value, r in unbound_tensors(again)}
    path = tmp_path / "model.safetensors"
    assert locations == {"w": (path, "w", (64, 48)), "v": (path, "v", (64, 48))}


def test_a_number_that_is_added_is_part_of_the_reference(tmp_path: Path) -> None:
    model = model_of(checkpoint(tmp_path), "w")
    w = model.graphs[0].initializers["w"]
    assert b'"version":1' in formats.dumps(model)
    assert isinstance(w.const_value, UnboundTensor)
    w.const_value = w.const_value.plus(1.0, "w")
    data = formats.dumps(model)
    assert b'"version":2' in data
    again = formats.loads(data)
    assert formats.dumps(again) == data
    bind(again, partial=True)
    assert_close(again.graphs[0].initializers["w"].const_value.numpy(), NUMBERS + 1)  # type: ignore[union-attr]
    written = formats.loads(formats.dumps(again)).graphs[0].initializers["w"]
    assert_close(written.const_value.numpy(), NUMBERS + 1)  # type: ignore[union-attr]


def test_without_binding_there_are_no_numbers(tmp_path: Path) -> None:
    model = model_of(checkpoint(tmp_path), "w")
    with pytest.raises(ModelError, match=r"^w is not in the model but in .*: run bind\.weights\.py before"):
        model.graphs[0].initializers["w"].const_value.numpy()  # type: ignore[union-attr]


def test_a_reference_has_as_many_numbers_as_its_tensor(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"w is \[64, 47\] but refers to v, \[64, 48\]"):
        UnboundTensor("w", tmp_path / "f", "v", FLOAT, (64, 48), (64, 47))
    model = model_of(checkpoint(tmp_path), "w")
    model.graphs[0].initializers["w"].shape = ir.Shape([64, 47])
    with pytest.raises(ModelError, match="<bytes>: w is"):
        formats.loads(formats.dumps(model))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"version": 1}',
        b'{"version": 1, "files": [], "unused": [], "buffers": {"1": {"file": 0, "tensor": "w"}}}',
        b'{"version": 1, "files": ["f"], "unused": [], "buffers": {}}',
    ],
)
def test_damaged_references(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"its metadata o2o\.weights is damaged"):
        loads(data)


def test_references_of_the_future() -> None:
    empty: Any = b'{"version": 3, "files": [], "unused": [], "buffers": {}}'
    with pytest.raises(ModelError, match="version 3; this o2o knows 2: update"):
        loads(empty)
