"""`--strict` and `--trust-remote-code`: code of a checkpoint runs only with the flag, and nothing asks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from export import loading_flags
from export.model import LanguageModel
from export.shell import export_command
from o2o.errors import ModelError
from tests.checkpoints import GROUPED, write_checkpoint


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A checkpoint of an unknown type with code that leaves a file when it runs."""
    mark = tmp_path / "it-ran"
    directory = tmp_path / "model"
    directory.mkdir()
    auto_map = {"AutoConfig": "configuration_own.OwnConfig"}
    (directory / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    (directory / "configuration_own.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import LlamaConfig\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    return directory


def test_code_does_not_run(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # `yes |` must not help
    with pytest.raises(ModelError, match="--trust-remote-code"):
        LanguageModel.read(code)
    assert not (code.parent / "it-ran").exists()


def test_code_runs_with_the_flag(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setenv(loading_flags.VARIABLES[loading_flags.TRUST], "")
    parser = argparse.ArgumentParser()
    loading_flags.add_loading_flags(parser)
    parser.parse_args(["--trust-remote-code"])
    with pytest.raises(ModelError):  # it has a configuration, but no model
        LanguageModel.read(code)
    assert (code.parent / "it-ran").exists()


def test_auto_map_of_a_known_model(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, **GROUPED)
    config = json.loads((directory / "config.json").read_text())
    auto_map = {"AutoConfig": "no_such_file.Config", "AutoModelForCausalLM": "no_such_file.Model"}
    (directory / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    assert LanguageModel.read(directory).kind == "llama"


def test_commands_have_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loading_flags.VARIABLES[loading_flags.STRICT], "1")
    assert "--strict" in export_command(Path("model"), 32, "", "static")
    assert loading_flags.is_strict()
    assert not loading_flags.is_trusted()
