"""`o2o convert`: plans, refusals before anything is written, and packages of every format."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export import convert
from export.config import CheckpointConfig
from export.convert import default_length
from o2o.__main__ import main
from tests.checkpoints import GROUPED, write_checkpoint
from tests.conftest import ROOT
from tests.pipelines import in_process


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = GROUPED | {"num_hidden_layers": 1}
    return write_checkpoint(tmp_path_factory.mktemp("small"), **fields)


def run(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)], "o2o")


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ([], ["fuse.attention.py", "bind.weights.py -o model.circle"]),
        (["--quantize", "dynamic_int8"], ["quantize.weights.py --recipe dynamic_int8 | bind.weights.py"]),
        (["--format", "tflite", "--quantize", "float16"], ["recipe float16", "sign.ai_edge.py"]),
        (["--format", "onnx"], ["lower.onnx.py --form ort model.circle -o model.onnx"]),
        (["--format", "onnx", "--onnx-form", "standard"], ["lower.onnx.py --form standard"]),
        (["--cache", "static", "--dtype", "float16"], ["--cache static", "--dtype float16"]),
        (["--prefill-lengths", "4,8"], ["prefill_4", "prefill_8"]),
    ],
)
def test_a_dry_run_prints_the_plan(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], steps: list[str]
) -> None:
    before = sorted(tmp_path.iterdir())
    assert run(checkpoint, "-o", tmp_path / "p", "--max-length", 16, "--dry-run", *flags) == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1  # the checkpoint has no tokenizer
    for text in ("llama, 1 layer", "context     16 tokens", "memory", "disk", *steps):
        assert text in captured.out
    assert sorted(tmp_path.iterdir()) == before


def test_the_plan_of_a_litertlm_file(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It holds the tokenizer, so the checkpoint must have one. Its shortest prefill has 8 tokens."""
    flags = ["-o", tmp_path / "p", "--max-length", 16, "--format", "litertlm", "--dry-run"]
    assert run(checkpoint, *flags) == 1
    assert "--format litertlm needs one" in capsys.readouterr().err
    with_tokenizer = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, with_tokenizer)
    (with_tokenizer / "tokenizer.json").write_text("{}")
    assert run(with_tokenizer, *flags) == 0
    printed = capsys.readouterr().out
    assert "p/model.litertlm" in printed
    assert "prefill_8, prefill_16, decode" in printed
    assert f"| pack.litertlm.py --tokenizer {with_tokenizer} -o model.litertlm" in printed


def test_a_dry_run_does_not_import_torch(checkpoint: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom o2o.__main__ import main\n"
        f"code = main(['convert', {str(checkpoint)!r}, '-o', 'p', '--dry-run'], 'o2o')\n"
        "print(code, [m for m in ('torch', 'transformers', 'tico') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


REFUSED = [
    (["--max-length", "65"], 2, "this llama model has 64 positions"),
    (["--quantize", "int8"], 2, "unknown recipe 'int8'"),
    (["--format", "tflite", "--dtype", "float16"], 2, "give --quantize float16 instead"),
    (["--format", "tflite", "--cache", "concat"], 2, "--cache concat needs --format circle"),
    (["--format", "litertlm", "--cache", "concat"], 1, "has no tokenizer.json and no tokenizer.model"),
    (["--quantize", "dynamic_int8", "--dtype", "float16"], 2, "give one of them"),
    (["--format", "onnx", "--prefill-lengths", "8"], 2, "reads prompts of any length"),
    (["--prefill-lengths", "99"], 2, "99 tokens do not fit"),
    (["--max-lenght", "16"], 2, "did you mean --max-length?"),
]


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(("flags", "code", "message"), REFUSED)
def test_refusals_come_before_anything_is_written(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    message: str,
    dry: bool,
) -> None:
    assert run(checkpoint, "-o", tmp_path / "p", *flags, *["--dry-run"] * dry) == code
    error = capsys.readouterr().err
    assert error.startswith("o2o convert: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "p").exists()


def test_rows_that_are_appended_need_an_operator_of_circle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", **GROUPED)
    config = json.loads((folder / "config.json").read_text()) | {"attention_multiplier": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    assert run(folder, "-o", tmp_path / "p", "--cache", "concat") == 2
    error = capsys.readouterr().err
    assert "--cache concat needs Circle's ATTENTION, which has no operand for another scale" in error
    assert run(folder, "-o", tmp_path / "p", "--cache", "static", "--dry-run") == 0


def test_models_that_cannot_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "-o", tmp_path / "p", "--dry-run") == 1
    assert "no usable config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    assert run(tmp_path, "-o", tmp_path / "p", "--dry-run") == 1
    assert "this resnet model is a vision model" in capsys.readouterr().err
    assert run("no/such-model", "-o", tmp_path / "p", "--dry-run") == 1
    assert "`hf download no/such-model` fetches it" in capsys.readouterr().err


@pytest.mark.parametrize("fields", [{}, {"model_type": "gpt2"}, {"attn_logit_softcapping": 50.0}])
def test_attention_for_onnx(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, object]
) -> None:
    """One operator, whatever the family adds to it."""
    config = json.loads((checkpoint / "config.json").read_text()) | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(checkpoint / "model.safetensors")
    assert run(tmp_path, "-o", tmp_path / "p", "--format", "onnx", "--max-length", 16, "--dry-run") == 0
    printed = " ".join(capsys.readouterr().out.replace("\\", " ").split())
    assert "--cache static --dtype float32 --attn-implementation grouped" in printed
    assert "| fuse.attention.py | fuse.rms_norm.py | fuse.rope.py" in printed


def test_a_window_does_not_limit_the_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path, model_type="mistral", **GROUPED | {"sliding_window": 32})
    assert run(folder, "-o", tmp_path / "p", "--dry-run") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "context 64 tokens, " in out
    assert "a window of 32 tokens in 3 layers" in out


def test_the_output_is_a_file(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").write_text("mine")
    assert run(checkpoint, "-o", tmp_path / "p", "--dry-run") == 2
    assert "this is a file, not a folder" in capsys.readouterr().err


def test_without_the_export_extra(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ['no-such-package; extra == "export"'])
    assert run(checkpoint, "-o", "p") == 1
    assert capsys.readouterr().err == (
        "o2o convert: this command needs the export extra: pip install 'o2o[export]'\n"
    )


def test_the_default_length() -> None:
    def length(**fields: int) -> int:
        return default_length(CheckpointConfig(fields, "folder"))

    assert length() == 1024
    assert length(max_position_embeddings=4096) == 1024
    assert length(max_position_embeddings=512) == 512
    assert length(max_position_embeddings=4096, sliding_window=256) == 1024


def test_an_onnx_package_runs(
    checkpoint: Path, tmp_path: Path, shared_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Quantized, from a checkpoint to logits, in place of another format."""
    from runtime_py import Package

    package = tmp_path / "package"
    package.mkdir()
    (package / "model.circle").write_bytes(b"an older one")
    flags = [str(checkpoint), "-o", str(package), "--max-length", "16", "--quantize", "dynamic_int8"]
    with in_process(shared_directory):
        assert convert.main([*flags, "--format", "onnx"]) == 0, capfd.readouterr().err
    lines = capfd.readouterr().err.splitlines()
    hint = "give one with --tokenizer DIR, here or to o2o run"
    assert lines[0] == f"convert: note: {checkpoint} has no tokenizer: {hint}"
    assert lines[-1] == f"convert: {package} is ready: o2o run {package}"
    assert {"model.onnx", "config.json"} <= {path.name for path in package.iterdir()}
    assert not (package / "model.circle").exists()
    engine = Package(package, package / "model.onnx").engine()
    session = engine.open_session()
    assert session.prefill([1, 5, 7]).shape == (engine.vocab_size,)
    assert session.decode(3, 3).shape == (engine.vocab_size,)
    session.close()
    engine.close()
    assert convert.main([*flags, "--if-changed", "--format", "onnx"]) == 0
    assert "is up to date" in capfd.readouterr().err
