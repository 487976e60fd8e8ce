"""`o2o inspect` prints a model, or the model of a package's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o import formats
from o2o.__main__ import main
from o2o.verbs import inspect
from tests.o2o.graphs import linear


def test_a_package_stands_for_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats.save(linear(), tmp_path / "model.circle")
    outputs = []
    for path in (tmp_path, tmp_path / "model.circle"):
        assert inspect.main([str(path)]) == 0
        outputs.append(capsys.readouterr().out)
    assert main(["inspect", str(tmp_path)], "o2o") == 0
    outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2]
    assert "model.circle: Circle" in outputs[0]


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").touch()
    assert main(["inspect", str(tmp_path)], "o2o") == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(f"o2o inspect: {tmp_path}: this folder has no model.circle")
