"""bind.weights.py --check: the numbers that references stand for, read a second time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from o2o import formats
from o2o.filters import bind_weights
from o2o.formats.unbound_tensor import UnboundTensor
from tests.o2o.weights.test_binding import FLOAT, NUMBERS, checkpoint, model_of

Change = Callable[[UnboundTensor], UnboundTensor]
CHANGES: dict[str, tuple[Change, Callable[[torch.Tensor], torch.Tensor]]] = {
    "1 + w, as in Gemma": (lambda w: w.plus(1.0, "w"), lambda numbers: numbers + 1),
    "w', as in GPT-2": (lambda w: w.transpose("w"), lambda numbers: numbers.T),
    "w' - 0.5": (lambda w: w.transpose("w").plus(-0.5, "w"), lambda numbers: numbers.T - 0.5),
}


def _write(folder: Path, change: Change, dtype: torch.dtype) -> list[str]:
    """A model with a changed reference; the arguments that bind it."""
    path = checkpoint(folder, dtype)
    reference = change(UnboundTensor("w", path, "w", FLOAT, (64, 48)))
    model = model_of(path, "w", shape=tuple(reference.shape.numpy()))
    model.graphs[0].initializers["w"].const_value = reference
    formats.save(model, folder / "model.circle")
    return [str(folder / "model.circle"), "--check", "--partial", "-o", str(folder / "bound.circle")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CHANGES)
def test_computed_numbers_are_compared(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    change, expected = CHANGES[name]
    assert bind_weights.main(_write(tmp_path, change, dtype)) == 0
    w = formats.load(tmp_path / "bound.circle").graphs[0].initializers["w"].const_value
    assert w is not None
    np.testing.assert_array_equal(w.numpy(), expected(NUMBERS.to(dtype).float()).numpy())


@pytest.mark.parametrize("name", CHANGES)
def test_numbers_that_were_not_computed_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _write(tmp_path, CHANGES[name][0], torch.float32)
    monkeypatch.setattr("o2o.weights.binding._computed", lambda external, stored: stored)
    assert bind_weights.main(arguments) == 1
    message = "--check: constant w of main has other numbers than w of the checkpoint"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bound.circle").exists()
