"""`python -m export`: one command for all graphs of a package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from export import __main__ as command
from export.config import CheckpointConfig
from o2o import formats
from o2o.errors import ModelError
from o2o.weights.binding import unbound_tensors
from tests.checkpoints import GROUPED, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small"), **GROUPED | {"num_hidden_layers": 1})


def test_all_graphs_and_the_tokenizer(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "tokenized").mkdir()
    directory = Path(shutil.copytree(checkpoint, tmp_path / "tokenized" / "model"))
    (directory / "tokenizer.json").write_text("{}")
    out = tmp_path / "new" / "graphs"
    arguments = [str(directory), "-o", str(out), "--max-length", "24", "--prefill-lengths", "4,8"]
    assert command.main([*arguments, "--jobs", "2"]) == 0
    files = {"prefill_4_.circle", "prefill_8_.circle", "decode_.circle"}
    assert {path.name for path in out.iterdir()} == files | {"config.json", "tokenizer.json"}
    for file in files:
        model = formats.load(out / file)
        assert model.signatures[0].name == file.removesuffix("_.circle")
        assert len(list(unbound_tensors(model))) == 6, "what is not small, and the embeddings once"
        assert (out / file).stat().st_size < 60_000
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "llama, 1 layers, 24,480 parameters, 0.1 MB of F32" in lines[0]
    assert "prefill_4, prefill_8, decode of 24 tokens: about 0.1 MB on disk" in lines[1]
    assert lines[2].startswith("export: wrote prefill_4_.circle, prefill_8_.circle, decode_.circle into")


def test_weights_may_come_along(tmp_path: Path, checkpoint: Path) -> None:
    arguments = [str(checkpoint), "--max-length", "24", "--prefill-lengths", "", "--jobs", "1"]
    assert command.main([*arguments, "-o", str(tmp_path), "--weights", "embed", "--cache", "static"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.circle")) == ["decode.circle", "prefill.circle"]
    assert not list(unbound_tensors(formats.load(tmp_path / "decode.circle")))
    assert (tmp_path / "decode.circle").stat().st_size > 4 * 24_480


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ([], 2, "the following arguments are required: MODEL, -o/--output"),
        (["./nope", "-o", "out"], 2, "no such folder: ./nope"),
        ([".", "-o", ""], 2, "--output: the folder's name is empty"),
        (["CHECKPOINT", "-o", "out", "--prefill-lengths", "4,,8"], 2, "is not a list of numbers"),
        ([".", "-o", "out"], 1, "has no config.json"),
        (["CHECKPOINT", "-o", "out", "--max-length", "2"], 2, "at least 3"),
        (["CHECKPOINT", "-o", "out", "--prefill-lengths", "a"], 2, "is not a list of numbers"),
        (["CHECKPOINT", "-o", "out", "--prefill-lengths", "2000"], 2, "do not fit into --max-length 1024"),
        (["CHECKPOINT", "-o", "out", "--max-length", "65"], 2, "this llama model has 64 positions"),
        (
            ["CHECKPOINT", "-o", "out", "--max-length", "65", "--jobs", "1"],
            2,
            "this llama model has 64 positions",
        ),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    code: int,
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(checkpoint) if argument == "CHECKPOINT" else argument for argument in arguments]
    assert command.main(given) == code
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("export: ")
    assert complaint in line
    assert not list(tmp_path.glob("out/*.circle"))


def test_the_words_of_gpt_2(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2, "n_positions": 96}')
    config = CheckpointConfig.read(tmp_path)
    assert (config.model_type, config.layers, config.positions) == ("gpt2", 2, 96)


def test_a_config_without_layers(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    directory = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": None}))
    assert command.main([str(directory), "-o", str(tmp_path / "out")]) == 1
    assert "no usable config.json (it lacks num_hidden_layers)" in capsys.readouterr().err


def test_too_little_room_is_told_at_once(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("export.resources.available_memory", lambda: 1000)
    assert command.main([str(checkpoint), "-o", str(tmp_path / "out"), "--max-length", "24"]) == 1
    assert "of memory, and 0.0 MB are free" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_bar_unless_someone_looks_on(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from o2o.cli.progress import progress

    with progress("export", 3, "graph") as done:
        done(1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("export", 3, "graph") as done:
        done(1)
    assert "export:" in capsys.readouterr().err
    with progress("export", 3, "graph", shown=False) as done:
        done(1)
    assert capsys.readouterr().err == ""


def test_errors_survive_the_way_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ModelError("what, where, what to do")))
    assert (type(error), str(error), error.exit_code) == (ModelError, "what, where, what to do", 1)
